"""Pointwise attention as one additive primitive, and the choice of its back end.

    out_i = sum_j w_ij * f(q_i . k_j + position_bias[i - j] + time_bias[bucket_ij]) v_j

with f = SiLU (HSTU, arXiv 2402.17152) or exp. No softmax statistics are needed, so dense causal,
windowed, per-session and sparse attention are the same sum over another list of tiles. A softmax is
two such sums (`softmax_attention`).

Shape legend (suffixes of names): Q queries, K keys, H heads, d width of a head's queries and keys,
e of its values, N tiles, G queries and S keys of a tile.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hpgr.model.attention.cover import Tiles
from hpgr.model.attention.key_attention import key_tile_attention
from hpgr.model.attention.key_tiles import KeyTiles
from hpgr.model.attention.reference import matrix_attention
from hpgr.model.attention.tiles import tile_attention
from hpgr.model.shapes import Float

# History length from which a sparse mask pays; docs/performance.md. Not measured on CUDA.
BREAK_EVEN = {"cpu": 256, "cuda": 1024}

BackEnd = Callable[..., Tensor]


class BackEndChoice(NamedTuple):
    """The back end of sparse masks, dense, tiles or triton, and the reason for it."""

    name: str
    reason: str

    @property
    def sparse(self) -> bool:
        """True if only what the mask shows is computed."""
        return self.name != "dense"


@functools.cache
def choose(kind: str, max_history: int) -> BackEndChoice:
    """Choose the back end of sparse masks.

    Args:
        kind: cpu or cuda.
        max_history: most events that a query sees.
    """
    least = BREAK_EVEN.get(kind, BREAK_EVEN["cuda"])
    if max_history < least:
        return BackEndChoice(
            "dense", f"histories of at most {max_history} events, sparse from {least} on"
        )
    if kind != "cuda":
        return BackEndChoice("tiles", f"histories of up to {max_history} events on {kind}")
    if missing := _no_triton():
        return BackEndChoice("tiles", f"histories of up to {max_history} events, but {missing}")
    return BackEndChoice("triton", f"histories of up to {max_history} events on CUDA")


@functools.cache
def _no_triton() -> str:
    """Return why Triton's kernels cannot run, or nothing."""
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


def back_end(tiles: Tiles | KeyTiles, kind: str, name: str = "auto") -> BackEnd:
    """Return the function that computes the sum over `tiles`.

    Args:
        tiles: the list; Triton's kernels compute lists of gathered queries alone.
        kind: cpu or cuda.
        name: dense (the whole matrix), tiles, triton, or auto for the fastest that works there.
    """
    gathered = isinstance(tiles, KeyTiles)
    if name == "auto":
        name = "triton" if gathered and kind == "cuda" and not _no_triton() else "tiles"
    if name == "triton":
        from hpgr.model.attention.triton_kernels import triton_attention

        return triton_attention
    if name == "dense":
        return matrix_attention
    return key_tile_attention if gathered else tile_attention


def additive_attention(
    q_QHd: Float[Tensor, "Q H d"],
    k_KHd: Float[Tensor, "K H d"],
    v_KHe: Float[Tensor, "K H e"],
    tiles: Tiles | KeyTiles,
    *,
    position_bias: Float[Tensor, "P"],
    time_bias: Float[Tensor, "buckets"],
    weight: Float[Tensor, "N G S"] | None = None,
    exponential: bool = False,
    name: str = "auto",
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
        weight: [N, G, S], multiplies f(score); receives a gradient.
        exponential: f is exp instead of SiLU.
        name: of the back end; see `back_end`.

    Returns:
        [Q, H, e].
    """
    return back_end(tiles, q_QHd.device.type, name)(
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

    Safe without subtracting a maximum because callers bound the scores: by normalised q and k, or
    as `hpgr.model.sasrec.excess` says.
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
