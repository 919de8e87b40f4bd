"""The additive attention over tiles of gathered queries, with torch's own operations.

Rows of queries are gathered tile by tile and their sums added back. The backward pass recomputes
the scores.

Shape legend (suffixes of names): Q queries, K keys, H heads, d width of a head's queries and keys,
e of its values, N tiles, n tiles of one chunk, G query rows and S keys of a tile, B blocks of keys.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hpgr.model.attention.bias import PairBias
from hpgr.model.attention.key_tiles import KeyTiles
from hpgr.model.placement import at_a_time
from hpgr.model.precision import autocast_off, product_type

TILES_AT_A_TIME = 112  # on a CPU: few enough for its cache, enough to outweigh the calls


def key_tile_attention(
    q_QHd: Tensor,
    k_KHd: Tensor,
    v_KHe: Tensor,
    tiles: KeyTiles,
    *,
    position_bias: Tensor,
    time_bias: Tensor,
    weight: Tensor | None = None,
    exponential: bool = False,
) -> Tensor:
    """Compute the additive attention sum; see `hpgr.model.attention.entry.additive_attention`."""
    dtype = product_type(q_QHd, k_KHd, v_KHe)
    with autocast_off(q_QHd):
        factors = (x.to(dtype).contiguous() for x in (q_QHd, k_KHd, v_KHe))
        return _KeyTileAttention.apply(
            *factors, position_bias, time_bias, weight, tiles, exponential
        )


class _KeyTileAttention(torch.autograd.Function):
    """The sum above; see `key_tile_attention` for arguments."""

    @staticmethod
    def forward(ctx, q_QHd, k_KHd, v_KHe, position_bias, time_bias, weight_NGS, tiles, exponential):  # type: ignore[override]
        dtype, heads = q_QHd.dtype, q_QHd.shape[1]
        bias = PairBias(position_bias, time_bias, tiles)
        query_HQd = q_QHd.transpose(0, 1).contiguous()  # rows of one head lie closer together
        out_HQe = q_QHd.new_zeros(
            heads, len(q_QHd), v_KHe.shape[2], dtype=torch.promote_types(dtype, torch.float32)
        )
        for part in _parts(tiles, q_QHd):
            row_nG, column_nS = _pair_rows(tiles, part)
            bias_nGS = bias.of(part).to(dtype)
            weight_nGS = weight_NGS[part].to(dtype) if weight_NGS is not None else None
            for h in range(heads):
                query_nGd, key_nSd = _take(query_HQd[h], row_nG), _take(k_KHd, column_nS, h)
                score_nGS = torch.baddbmm(bias_nGS, query_nGd, key_nSd.transpose(1, 2))
                active_nGS = (
                    score_nGS.exp_() if exponential else functional.silu(score_nGS, inplace=True)
                )
                if weight_nGS is not None:
                    active_nGS *= weight_nGS
                _add(out_HQe[h], row_nG, active_nGS @ _take(v_KHe, column_nS, h))
        ctx.save_for_backward(q_QHd, k_KHd, v_KHe, position_bias, time_bias, weight_NGS)
        ctx.tiles, ctx.exponential = tiles, exponential
        return out_HQe.transpose(0, 1).to(dtype)

    @staticmethod
    def backward(ctx, grad_QHe):  # type: ignore[override]
        q_QHd, k_KHd, v_KHe, position_bias, time_bias, weight_NGS = ctx.saved_tensors
        tiles, exponential = ctx.tiles, ctx.exponential
        dtype, heads = q_QHd.dtype, q_QHd.shape[1]
        query_HQd, grad_HQe = (x.transpose(0, 1).contiguous() for x in (q_QHd, grad_QHe))
        bias = PairBias(position_bias, time_bias, tiles)
        accumulate = torch.promote_types(dtype, torch.float32)
        grad_q_HQd, grad_k_KHd, grad_v_KHe = (
            torch.zeros_like(x, dtype=accumulate) for x in (query_HQd, k_KHd, v_KHe)
        )
        grad_weight_NGS = torch.zeros_like(weight_NGS) if weight_NGS is not None else None
        for part in _parts(tiles, q_QHd):
            row_nG, column_nS = _pair_rows(tiles, part)
            bias_nGS = bias.of(part).to(dtype)
            weight_nGS = weight_NGS[part].to(dtype) if weight_NGS is not None else None
            grad_bias_nGS = torch.zeros_like(bias_nGS, dtype=accumulate)
            for h in range(heads):
                query_nGd, key_nSd = _take(query_HQd[h], row_nG), _take(k_KHd, column_nS, h)
                grad_nGe, value_nSe = _take(grad_HQe[h], row_nG), _take(v_KHe, column_nS, h)
                score_nGS = torch.baddbmm(bias_nGS, query_nGd, key_nSd.transpose(1, 2))
                grad_active_nGS = grad_nGe @ value_nSe.transpose(1, 2)
                active_nGS = score_nGS.exp() if exponential else functional.silu(score_nGS)
                weighted_nGS = active_nGS
                if weight_nGS is not None and grad_weight_NGS is not None:
                    grad_weight_NGS[part].addcmul_(active_nGS, grad_active_nGS)
                    grad_active_nGS *= weight_nGS
                    weighted_nGS = active_nGS * weight_nGS
                _add(grad_v_KHe, column_nS, weighted_nGS.transpose(1, 2) @ grad_nGe, h)
                if exponential:
                    grad_score_nGS = grad_active_nGS.mul_(active_nGS)
                else:
                    grad_score_nGS = torch.ops.aten.silu_backward(grad_active_nGS, score_nGS)
                grad_bias_nGS += grad_score_nGS
                _add(grad_q_HQd[h], row_nG, grad_score_nGS @ key_nSd)
                _add(grad_k_KHd, column_nS, grad_score_nGS.transpose(1, 2) @ query_nGd, h)
                del query_nGd, grad_nGe  # the largest: free before the next are gathered
            bias.add_grad(part, grad_bias_nGS)
        return (
            grad_q_HQd.transpose(0, 1).to(dtype),
            grad_k_KHd.to(dtype),
            grad_v_KHe.to(dtype),
            bias.grad_position(),
            bias.grad_time(),
            grad_weight_NGS,
            None,
            None,
        )


def _parts(tiles: KeyTiles, q: Tensor):
    each = tiles.bucket[0].numel() * q.element_size() if len(tiles.bucket) else 1
    step = at_a_time(q.device, cpu=TILES_AT_A_TIME, bytes_each=each)
    for low in range(0, len(tiles.block), step):
        yield slice(low, low + step)


def _pair_rows(tiles: KeyTiles, part: slice) -> tuple[Tensor, Tensor]:
    """Rows of queries [n, G] and of keys [n, S] of some tiles.

    Places that are not filled add zeros to the last row.
    """
    inside_S = torch.arange(tiles.size, device=tiles.block.device)
    column_nS = tiles.block[part, None] * tiles.size + inside_S
    return (
        tiles.rows[part].clamp_max(tiles.num_queries - 1),
        column_nS.clamp_max_(tiles.num_keys - 1),
    )


def _take(x: Tensor, row_nG: Tensor, head: int | None = None) -> Tensor:
    """Rows [n, G, d] of x [Q, d], or of one head of x [Q, H, d]."""
    x, row = _flat(x, row_nG, head)
    return x.index_select(0, row).view(*row_nG.shape, x.shape[1])


def _add(total: Tensor, row_nG: Tensor, part_nGd: Tensor, head: int | None = None) -> None:
    """Add to the rows that `_take` reads."""
    total, row = _flat(total, row_nG, head)
    total.index_add_(0, row, part_nGd.flatten(0, 1).to(total.dtype))


def _flat(x: Tensor, row: Tensor, head: int | None) -> tuple[Tensor, Tensor]:
    """Return x as a matrix and the numbers of its rows: one pass over contiguous memory."""
    if head is None:
        return x, row.flatten()
    return x.flatten(0, 1), (row * x.shape[1] + head).flatten()
