"""The additive attention over a list of tiles, with torch's own operations, on any device.

Contributions of key tiles add, so the same code serves small square tiles and one large tile a
segment (`hpgr.model.attention.cover`). The backward pass recomputes the scores, so memory is linear
in the number of tiles' buckets, not in heads x scores.

Shape legend (suffixes of names): Q queries, K keys, H heads, d width of a head's queries and keys,
e of its values, N tiles, n tiles of one chunk, S tile side (tiles of segments have two: see
`hpgr.model.attention.cover`), B blocks of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hpgr.model.attention.bias import HIDDEN_BIAS, PairBias
from hpgr.model.attention.cover import HIDDEN, Tiles, blocks
from hpgr.model.placement import at_a_time
from hpgr.model.precision import autocast_off, product_type

PAIRS_AT_A_TIME = 1 << 17  # on a CPU: scores of one chunk stay in the processor's cache
QUERY, KEY = 0, 1  # side of a tile


def _heads_first(rows: Tensor, tiles: Tiles, side: int) -> Tensor:
    """[R, H, d] -> [B, H, S, d], contiguous."""
    if tiles.rows is None:
        return blocks(rows, tiles.size).transpose(1, 2).contiguous()
    return rows[tiles.rows[side]].transpose(1, 2).contiguous()


def _gather(tile_rows: Tensor, index: Tensor) -> Tensor:
    """Blocks `index` of [B, H, S, d]; flat rows make it one copy a block."""
    return tile_rows.flatten(1).index_select(0, index).view(-1, *tile_rows.shape[1:])


def _scatter_add(total: Tensor, index: Tensor, part: Tensor) -> None:
    """Add `part` to blocks `index` of `total`; flat rows are a thousand times faster on a CPU."""
    total.flatten(1).index_add_(0, index, part.flatten(1).to(total.dtype))


def _rows(tiles_out: Tensor, tiles: Tiles, side: int, count: int) -> Tensor:
    """[B, H, S, d] -> [count, H, d]; rows of padding hold zeros."""
    flat = tiles_out.transpose(1, 2).flatten(0, 1)
    if tiles.rows is None:
        return flat[:count]
    total = flat.new_zeros(count, *flat.shape[1:])
    total.flatten(1).index_add_(0, tiles.rows[side].flatten(), flat.flatten(1))
    return total


def _at_a_time(tiles: Tiles, q: Tensor) -> int:
    """Tiles of one chunk, by queries [Q, H, d] or [B, H, S, d]."""
    pairs = tiles.bucket.shape[1] * tiles.bucket.shape[2]
    each = pairs * q.shape[1] * q.element_size()
    return at_a_time(q.device, cpu=max(1, PAIRS_AT_A_TIME // max(1, pairs)), bytes_each=each)


def _visible_exp(scores_nHSS: Tensor, tiles: Tiles, part: slice) -> Tensor:
    """Exponentiate the scores in place, 0 where not visible; HIDDEN_BIAS takes ten times longer."""
    hidden_nSS = tiles.bucket[part] == HIDDEN
    return scores_nHSS.exp_().masked_fill_(hidden_nSS[:, None], 0.0)


class _TileAttention(torch.autograd.Function):
    """The sum above; see `tile_attention` for arguments."""

    @staticmethod
    def forward(ctx, q_QHd, k_KHd, v_KHe, position_bias, time_bias, weight_NSS, tiles, exponential):  # type: ignore[override]
        query_BHSd = _heads_first(q_QHd, tiles, QUERY)
        key_BHSd, value_BHSe = (_heads_first(x, tiles, KEY) for x in (k_KHd, v_KHe))
        bias = PairBias(position_bias, time_bias, tiles, hidden=0.0 if exponential else HIDDEN_BIAS)
        accumulate = torch.promote_types(q_QHd.dtype, torch.float32)
        out_BHSe = torch.zeros(
            (*query_BHSd.shape[:3], value_BHSe.shape[3]), dtype=accumulate, device=q_QHd.device
        )
        step = _at_a_time(tiles, q_QHd)
        for low in range(0, len(tiles.query_block), step):
            part = slice(low, low + step)
            rows_n, columns_n = tiles.query_block[part], tiles.key_block[part]
            q_nHSd, k_nHSd = _gather(query_BHSd, rows_n), _gather(key_BHSd, columns_n)
            scores_nHSS = q_nHSd @ k_nHSd.transpose(-1, -2)
            scores_nHSS += bias.of(part)[:, None]
            if exponential:
                active_nHSS = _visible_exp(scores_nHSS, tiles, part)
            else:
                active_nHSS = functional.silu(scores_nHSS, inplace=True)
            if weight_NSS is not None:
                active_nHSS *= weight_NSS[part, None]
            _scatter_add(out_BHSe, rows_n, active_nHSS @ _gather(value_BHSe, columns_n))
        laid_out = (query_BHSd, key_BHSd, value_BHSe)
        ctx.save_for_backward(*laid_out, position_bias, time_bias, weight_NSS)
        ctx.tiles, ctx.exponential = tiles, exponential
        return _rows(out_BHSe, tiles, QUERY, tiles.num_queries).to(q_QHd.dtype)

    @staticmethod
    def backward(ctx, grad_QHe):  # type: ignore[override]
        query_BHSd, key_BHSd, value_BHSe, position_bias, time_bias, weight_NSS = ctx.saved_tensors
        tiles, exponential, dtype = ctx.tiles, ctx.exponential, query_BHSd.dtype
        grad_out_BHSe = _heads_first(grad_QHe, tiles, QUERY)
        bias = PairBias(position_bias, time_bias, tiles, hidden=0.0 if exponential else HIDDEN_BIAS)
        accumulate = torch.promote_types(dtype, torch.float32)
        grad_q_BHSd, grad_k_BHSd, grad_v_BHSe = (
            torch.zeros(x.shape, dtype=accumulate, device=x.device)
            for x in (query_BHSd, key_BHSd, value_BHSe)
        )
        grad_weight_NSS = torch.empty_like(weight_NSS) if weight_NSS is not None else None
        step = _at_a_time(tiles, query_BHSd)
        for low in range(0, len(tiles.query_block), step):
            part = slice(low, low + step)
            rows_n, columns_n = tiles.query_block[part], tiles.key_block[part]
            q_nHSd, g_nHSe = _gather(query_BHSd, rows_n), _gather(grad_out_BHSe, rows_n)
            k_nHSd, v_nHSe = _gather(key_BHSd, columns_n), _gather(value_BHSe, columns_n)
            scores_nHSS = q_nHSd @ k_nHSd.transpose(-1, -2)
            scores_nHSS += bias.of(part)[:, None]
            if exponential:
                active_nHSS = _visible_exp(scores_nHSS, tiles, part)
            else:
                active_nHSS = functional.silu(scores_nHSS)
            grad_active_nHSS = g_nHSe @ v_nHSe.transpose(-1, -2)
            if weight_NSS is not None and grad_weight_NSS is not None:
                grad_weight_NSS[part] = (active_nHSS * grad_active_nHSS).sum(1, dtype=accumulate)
                weight_n1SS = weight_NSS[part, None].to(active_nHSS.dtype)
                grad_active_nHSS *= weight_n1SS
                weighted_nHSS = active_nHSS * weight_n1SS
            else:
                weighted_nHSS = active_nHSS
            _scatter_add(grad_v_BHSe, columns_n, weighted_nHSS.transpose(-1, -2) @ g_nHSe)
            if exponential:
                grad_scores_nHSS = grad_active_nHSS.mul_(active_nHSS)
            else:
                grad_scores_nHSS = torch.ops.aten.silu_backward(grad_active_nHSS, scores_nHSS)
            _scatter_add(grad_q_BHSd, rows_n, grad_scores_nHSS @ k_nHSd)
            _scatter_add(grad_k_BHSd, columns_n, grad_scores_nHSS.transpose(-1, -2) @ q_nHSd)
            if any(ctx.needs_input_grad[3:5]):
                bias.add_grad(
                    part, grad_scores_nHSS.sum(1, dtype=accumulate), *ctx.needs_input_grad[3:5]
                )
        return (
            _rows(grad_q_BHSd, tiles, QUERY, tiles.num_queries).to(dtype),
            _rows(grad_k_BHSd, tiles, KEY, tiles.num_keys).to(dtype),
            _rows(grad_v_BHSe, tiles, KEY, tiles.num_keys).to(dtype),
            bias.grad_position(),
            bias.grad_time(),
            grad_weight_NSS,
            None,
            None,
        )


def _segment_sums(
    q_QHd: Tensor,
    k_KHd: Tensor,
    v_KHe: Tensor,
    position_bias: Tensor,
    time_bias: Tensor,
    weight_NRC: Tensor | None,
    tiles: Tiles,
    exponential: bool,
) -> Tensor:
    """Sum over tiles of segments, [Q, H, e]: each holds all keys of its queries. No gradients."""
    assert tiles.rows is not None
    q_NRHd = tiles.padded(q_QHd)
    bias = PairBias(position_bias, time_bias, tiles, hidden=0.0 if exponential else HIDDEN_BIAS)
    out_NRHe = q_NRHd.new_empty(*q_NRHd.shape[:3], v_KHe.shape[2])
    step = _at_a_time(tiles, q_QHd)
    for low in range(0, len(q_NRHd), step):
        part = slice(low, low + step)
        k_nCHd, v_nCHe = (_keys(x, tiles.rows[1][part]) for x in (k_KHd, v_KHe))
        bias_nRC = bias.of(part)
        for h in range(q_NRHd.shape[2]):  # products of slices: no head is copied
            scores_nRC = q_NRHd[part, :, h] @ k_nCHd[:, :, h].transpose(1, 2)
            scores_nRC += bias_nRC
            if exponential:
                active_nRC = _visible_exp(scores_nRC[:, None], tiles, part)[:, 0]
            else:
                active_nRC = functional.silu(scores_nRC, inplace=True)
            if weight_NRC is not None:
                active_nRC *= weight_NRC[part]
            out_NRHe[part, :, h] = active_nRC @ v_nCHe[:, :, h]
    return tiles.of_queries(out_NRHe.flatten(0, 1))


def _keys(rows_KHd: Tensor, column_nC: Tensor) -> Tensor:
    """Gather the rows of some segments, [n, C, H, d]; flat rows make it one copy a row."""
    chosen = rows_KHd.flatten(1).index_select(0, column_nC.flatten())
    return chosen.view(*column_nC.shape, *rows_KHd.shape[1:])


def tile_attention(
    q_QHd: Tensor,
    k_KHd: Tensor,
    v_KHe: Tensor,
    tiles: Tiles,
    *,
    position_bias: Tensor,
    time_bias: Tensor,
    weight: Tensor | None = None,
    exponential: bool = False,
) -> Tensor:
    """Compute the additive attention sum; see `hpgr.model.attention.entry.additive_attention`."""
    dtype = product_type(q_QHd, k_KHd, v_KHe)
    with autocast_off(q_QHd):
        q_QHd, k_KHd, v_KHe = q_QHd.to(dtype), k_KHd.to(dtype), v_KHe.to(dtype)
        factors = (q_QHd, k_KHd, v_KHe, position_bias, time_bias, weight, tiles, exponential)
        if tiles.rows is not None and not torch.is_grad_enabled():
            return _segment_sums(*factors).to(dtype)
        return _TileAttention.apply(*factors)
