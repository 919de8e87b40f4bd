"""The additive attention over the whole matrix: the oracle that the tests compare with.

Shape legend (suffixes of names): Q queries, K keys, H heads, d width of a head's queries and keys,
e of its values, N tiles, G queries and S keys of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor, einsum
from torch.nn import functional

from hpgr.model.attention.cover import HIDDEN, Tiles
from hpgr.model.attention.key_tiles import KeyTiles
from hpgr.model.shapes import Bool, Float, Int


def dense_attention(
    q_QHd: Float[Tensor, "Q H d"],
    k_KHd: Float[Tensor, "K H d"],
    v_KHe: Float[Tensor, "K H e"],
    *,
    visible: Bool[Tensor, "Q K"],
    bias: Float[Tensor, "Q K"],
    weight: Float[Tensor, "Q K"] | None = None,
    exponential: bool = False,
) -> Float[Tensor, "Q H e"]:
    """Compute the sum eagerly over the whole Q x K matrix.

    Args:
        q_QHd: [Q, H, d].
        k_KHd: [K, H, d].
        v_KHe: [K, H, e].
        visible: bool [Q, K].
        bias: [Q, K], added to every head's scores.
        weight: [Q, K], multiplies f(score).
        exponential: f is exp instead of SiLU.
    """
    scores_HQK = einsum("qhd,khd->hqk", q_QHd, k_KHd) + bias
    active_HQK = scores_HQK.exp() if exponential else functional.silu(scores_HQK)
    active_HQK = active_HQK * visible
    if weight is not None:
        active_HQK = active_HQK * weight
    return einsum("hqk,khd->qhd", active_HQK, v_KHe)


def matrix_attention(
    q_QHd: Float[Tensor, "Q H d"],
    k_KHd: Float[Tensor, "K H d"],
    v_KHe: Float[Tensor, "K H e"],
    tiles: Tiles | KeyTiles,
    *,
    position_bias: Float[Tensor, "P"],
    time_bias: Float[Tensor, "buckets"],
    weight: Float[Tensor, "N G S"] | None = None,
    exponential: bool = False,
) -> Float[Tensor, "Q H e"]:
    """Lay a tile list out as the whole matrix and compute the sum there.

    Arguments as in `hpgr.model.attention.entry.additive_attention`.
    """
    bucket_QK = laid_out(tiles, tiles.bucket, HIDDEN).long()
    visible_QK = bucket_QK != HIDDEN
    place_S = torch.arange(tiles.bucket.shape[2], device=tiles.bucket.device)
    distance_NGS = (tiles.base[:, :, None] - place_S).abs()
    distance_QK = laid_out(tiles, distance_NGS.clamp_max(len(position_bias) - 1))
    bias_QK = position_bias[distance_QK] + time_bias[bucket_QK.clamp_max(len(time_bias) - 1)]
    weight_QK = laid_out(tiles, weight) if weight is not None else None
    return dense_attention(
        q_QHd, k_KHd, v_KHe,
        visible=visible_QK, bias=bias_QK, weight=weight_QK, exponential=exponential,
    )  # fmt: skip


def pair_rows(tiles: Tiles | KeyTiles) -> tuple[Int[Tensor, "N G"], Int[Tensor, "N S"]]:
    """Return the query rows and the key rows of each tile; padding lies behind the last row."""
    if isinstance(tiles, Tiles) and tiles.rows is not None:
        return tiles.rows
    inside = torch.arange(tiles.size, device=tiles.bucket.device)
    if isinstance(tiles, KeyTiles):
        return tiles.rows, tiles.block[:, None] * tiles.size + inside
    return (
        tiles.query_block[:, None] * tiles.size + inside,
        tiles.key_block[:, None] * tiles.size + inside,
    )


def laid_out(tiles: Tiles | KeyTiles, value_NGS: Tensor, fill: int = 0) -> Tensor:
    """Lay a value of each visible pair out as the matrix [Q, K], with `fill` elsewhere."""
    row_NG, column_NS = pair_rows(tiles)
    seen_NGS = tiles.bucket != HIDDEN
    matrix_QK = torch.full(
        (tiles.num_queries, tiles.num_keys), fill, dtype=value_NGS.dtype, device=value_NGS.device
    )
    places = (
        row_NG[:, :, None].expand_as(seen_NGS)[seen_NGS],
        column_NS[:, None, :].expand_as(seen_NGS)[seen_NGS],
    )
    return matrix_QK.index_put(places, value_NGS[seen_NGS])
