"""Pointwise attention as one additive primitive, and the choice of its back end.

    out_i = sum_j w_ij * f(q_i . k_j + position_bias[i - j] + time_bias[bucket_ij]) v_j

with f = SiLU (HSTU, arXiv 2402.17152) or exp. No softmax statistics are needed, so dense causal,
windowed, per-session and sparse attention are the same sum over another list of tiles. A softmax is
two such sums (`softmax_attention`).

Shape legend (suffixes of names): Q queries, K keys, H heads, d width of a head's queries and keys,
e of its values, N tiles, S tile side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hpgr.model.attention.cover import Tiles
from hpgr.model.attention.tiles import tile_attention
from hpgr.model.shapes import Float

BackEnd = Callable[..., Tensor]
BACK_ENDS: dict[str, BackEnd] = {"tiles": tile_attention}


def back_end(device: torch.device, name: str = "auto") -> BackEnd:
    """Return the function that computes the sum on `device`.

    Args:
        device: of the queries.
        name: one of BACK_ENDS, or auto for the fastest that works there.
    """
    # Tiles alone so far, on every device.
    return BACK_ENDS["tiles" if name == "auto" else name]


def additive_attention(
    q_QHd: Float[Tensor, "Q H d"],
    k_KHd: Float[Tensor, "K H d"],
    v_KHe: Float[Tensor, "K H e"],
    tiles: Tiles,
    *,
    position_bias: Float[Tensor, "P"],
    time_bias: Float[Tensor, "buckets"],
    weight: Float[Tensor, "N S S"] | None = None,
    exponential: bool = False,
) -> Float[Tensor, "Q H e"]:
    """Compute the additive attention sum over a tile list, not normalised.

    Products have autocast's type if it is on, else the widest type of q, k and v. The sum over keys
    has float32 at least. Biases and their gradients keep their own type.

    Args:
        q_QHd: [Q, H, d].
        k_KHd: [K, H, d].
        v_KHe: [K, H, e].
        tiles: the keys that each query sees.
        position_bias: [P], by distance from query to key; greater distances share the last entry.
        time_bias: [129], by time bucket.
        weight: [N, S, S], multiplies f(score); receives a gradient.
        exponential: f is exp instead of SiLU.

    Returns:
        [Q, H, e].
    """
    return back_end(q_QHd.device)(
        q_QHd,
        k_KHd,
        v_KHe,
        tiles,
        position_bias=position_bias,
        time_bias=time_bias,
        weight=weight,
        exponential=exponential,
    )


def softmax_attention(
    q_QHd: Float[Tensor, "Q H d"],
    k_KHd: Float[Tensor, "K H d"],
    v_KHe: Float[Tensor, "K H e"],
    tiles: Tiles,
    position_bias: Float[Tensor, "P"],
) -> Float[Tensor, "Q H e"]:
    """Compute softmax attention as two additive sums: weighted values, and weights alone.

    Safe without subtracting a maximum because callers bound the scores (normalised q and k).
    A query that sees nothing gets zeros. Shapes as in `additive_attention`.
    """
    ones_KH1 = v_KHe.new_ones((*v_KHe.shape[:2], 1))
    no_time_bias = position_bias.new_zeros(1)
    summed = additive_attention(
        q_QHd,
        k_KHd,
        torch.cat([v_KHe, ones_KH1], dim=-1),
        tiles,
        position_bias=position_bias,
        time_bias=no_time_bias,
        exponential=True,
    )
    return summed[..., :-1] / summed[..., -1:].clamp_min(torch.finfo(summed.dtype).tiny)
