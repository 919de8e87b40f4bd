"""The additive attention over a list of tiles, with torch's own operations, on any device.

Contributions of key tiles add, so the same code serves small square tiles and one large tile a
segment (`hpgr.model.attention.cover`). The backward pass recomputes the scores, so memory is linear
in the number of tiles' buckets, not in heads x scores.

Shape legend (suffixes of names): Q queries, K keys, H heads, d width of a head's queries and keys,
e of its values, N tiles, n tiles of one chunk, S tile side (tiles of segments have two: see
`hpgr.model.attention.cover`), B blocks of rows, F differences between block numbers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpgr.model.attention.cover import HIDDEN, Tiles, blocks
from hpgr.model.placement import at_a_time
from hpgr.model.precision import autocast_off, product_type

PAIRS_AT_A_TIME = 32 * 64**2  # of tiles on a CPU: scores of a chunk stay in its cache
HIDDEN_BIAS = -1e4  # SiLU, exp and both their derivatives are exactly 0 here in float32
LOG2_E = math.log2(math.e)

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
    """Tiles of one chunk."""
    pairs = tiles.bucket.shape[1] * tiles.bucket.shape[2]
    each = pairs * q.shape[1] * q.element_size()
    few = max(1, PAIRS_AT_A_TIME // max(1, pairs))
    return at_a_time(q.device, cpu=few, bytes_each=each)


def bias_table(time_bias: Tensor) -> Tensor:
    """Bias by bucket with the hidden entry at its end, [256]."""
    table = time_bias.new_full((HIDDEN + 1,), HIDDEN_BIAS)
    table[: time_bias.shape[0]] = time_bias
    return table


class _TileAttention(torch.autograd.Function):
    """The sum above; see `tile_attention` for arguments."""

    @staticmethod
    def forward(ctx, q_QHd, k_KHd, v_KHe, position_bias, time_bias, weight_NSS, tiles, exponential):  # type: ignore[override]
        out_QHe = _sums(
            q_QHd, k_KHd, v_KHe, position_bias, time_bias, weight_NSS, tiles, exponential
        )
        ctx.save_for_backward(q_QHd, k_KHd, v_KHe, position_bias, time_bias, weight_NSS)
        ctx.tiles, ctx.exponential = tiles, exponential
        return out_QHe

    @staticmethod
    def backward(ctx, grad_QHe):  # type: ignore[override]
        q_QHd, k_KHd, v_KHe, position_bias, time_bias, weight_NSS = ctx.saved_tensors
        tiles, exponential = ctx.tiles, ctx.exponential
        query_BHSd, grad_out_BHSe = (_heads_first(x, tiles, QUERY) for x in (q_QHd, grad_QHe))
        key_BHSd, value_BHSe = (_heads_first(x, tiles, KEY) for x in (k_KHd, v_KHe))
        toeplitz_FSS, offsets_FSS = _toeplitz(position_bias, tiles)
        table = bias_table(time_bias)
        accumulate = torch.promote_types(q_QHd.dtype, torch.float32)
        grad_q_BHSd, grad_k_BHSd, grad_v_BHSe = (
            torch.zeros(x.shape, dtype=accumulate, device=q_QHd.device)
            for x in (query_BHSd, key_BHSd, value_BHSe)
        )
        grad_position = torch.zeros(
            toeplitz_FSS.shape if toeplitz_FSS is not None else position_bias.shape,
            dtype=accumulate,
            device=q_QHd.device,
        )
        grad_time = torch.zeros(HIDDEN + 1, dtype=accumulate, device=q_QHd.device)
        grad_weight_NSS = torch.empty_like(weight_NSS) if weight_NSS is not None else None
        step = _at_a_time(tiles, q_QHd)
        for low in range(0, len(tiles.query_block), step):
            part = slice(low, low + step)
            rows_n, columns_n = tiles.query_block[part], tiles.key_block[part]
            q_nHSd, g_nHSe = _gather(query_BHSd, rows_n), _gather(grad_out_BHSe, rows_n)
            k_nHSd, v_nHSe = _gather(key_BHSd, columns_n), _gather(value_BHSe, columns_n)
            scores_nHSS = q_nHSd @ k_nHSd.transpose(-1, -2)
            scores_nHSS += _pair_bias(position_bias, toeplitz_FSS, table, tiles, part)[:, None]
            active_nHSS = _exp_(scores_nHSS) if exponential else functional.silu(scores_nHSS)
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
            pair_nSS = grad_scores_nHSS.sum(1, dtype=accumulate)
            grad_time += torch.bincount(
                tiles.bucket[part].flatten().to(torch.int32),
                pair_nSS.flatten(),
                minlength=HIDDEN + 1,
            ).to(accumulate)
            if toeplitz_FSS is not None:
                _scatter_add(grad_position, (rows_n - columns_n) % len(grad_position), pair_nSS)
            else:
                grad_position += torch.bincount(
                    _distance(tiles, part, position_bias).flatten(),
                    pair_nSS.flatten(),
                    minlength=len(position_bias),
                ).to(accumulate)
        if offsets_FSS is not None:
            grad_position = torch.bincount(
                offsets_FSS.flatten(), grad_position.flatten(), minlength=len(position_bias)
            )
        return (
            _rows(grad_q_BHSd, tiles, QUERY, len(q_QHd)).to(q_QHd.dtype),
            _rows(grad_k_BHSd, tiles, KEY, len(k_KHd)).to(k_KHd.dtype),
            _rows(grad_v_BHSe, tiles, KEY, len(v_KHe)).to(v_KHe.dtype),
            grad_position.to(position_bias.dtype),
            grad_time[: len(time_bias)].to(time_bias.dtype),
            grad_weight_NSS,
            None,
            None,
        )


def _sums(q_QHd: Tensor, *others: Any) -> Tensor:
    """Compute the sum; arguments as `_TileAttention.forward` has them."""
    compute = _square_sums if others[5].rows is None else _segment_sums
    return compute(q_QHd, *others).to(q_QHd.dtype)


def _square_sums(
    q_QHd: Tensor,
    k_KHd: Tensor,
    v_KHe: Tensor,
    position_bias: Tensor,
    time_bias: Tensor,
    weight_NSS: Tensor | None,
    tiles: Tiles,
    exponential: bool,
) -> Tensor:
    """Sum over square tiles, [Q, H, e]."""
    query_BHSd = _heads_first(q_QHd, tiles, QUERY)
    key_BHSd, value_BHSe = (_heads_first(x, tiles, KEY) for x in (k_KHd, v_KHe))
    toeplitz_FSS, _ = _toeplitz(position_bias, tiles)
    table = bias_table(time_bias)
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
        scores_nHSS += _pair_bias(position_bias, toeplitz_FSS, table, tiles, part)[:, None]
        active_nHSS = (
            _exp_(scores_nHSS) if exponential else functional.silu(scores_nHSS, inplace=True)
        )
        if weight_NSS is not None:
            active_nHSS *= weight_NSS[part, None]
        _scatter_add(out_BHSe, rows_n, active_nHSS @ _gather(value_BHSe, columns_n))
    return _rows(out_BHSe, tiles, QUERY, tiles.num_queries)


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
    """Sum over tiles of segments, [Q, H, e]: each holds all keys of its queries."""
    assert tiles.rows is not None
    q_NRHd = tiles.padded(q_QHd)
    toeplitz_1RC = _segment_toeplitz(position_bias, tiles)
    table = bias_table(time_bias)
    out_NRHe = q_NRHd.new_empty(*q_NRHd.shape[:3], v_KHe.shape[2])
    step = _at_a_time(tiles, q_QHd)
    for low in range(0, len(q_NRHd), step):
        part = slice(low, low + step)
        k_nCHd, v_nCHe = (_keys(x, tiles.rows[1][part]) for x in (k_KHd, v_KHe))
        bias_nRC = _pair_bias(position_bias, toeplitz_1RC, table, tiles, part)
        for h in range(q_NRHd.shape[2]):  # products of slices: no head is copied
            scores_nRC = q_NRHd[part, :, h] @ k_nCHd[:, :, h].transpose(1, 2)
            scores_nRC += bias_nRC
            active_nRC = _exp_(scores_nRC) if exponential else functional.silu(scores_nRC, True)
            if weight_NRC is not None:
                active_nRC *= weight_NRC[part]
            out_NRHe[part, :, h] = active_nRC @ v_nCHe[:, :, h]
    return tiles.of_queries(out_NRHe.flatten(0, 1))


def _keys(rows_KHd: Tensor, column_nC: Tensor) -> Tensor:
    """Gather the rows of some segments, [n, C, H, d]; flat rows make it one copy a row."""
    chosen = rows_KHd.flatten(1).index_select(0, column_nC.flatten())
    return chosen.view(*column_nC.shape, *rows_KHd.shape[1:])


def _exp_(scores: Tensor) -> Tensor:
    """Exponentiate in place.

    On a CPU torch's exp takes thirty times as long where a result underflows, as at HIDDEN_BIAS;
    its exp2 does not.
    """
    if scores.device.type != "cpu" or scores.dtype != torch.float32:
        return scores.exp_()
    return scores.mul_(LOG2_E).exp2_()


def _toeplitz(position_bias: Tensor, tiles: Tiles) -> tuple[Tensor | None, Tensor | None]:
    """Position bias of a tile by block difference, [F, S, S], and its table indices.

    Only where queries and keys are the same rows: then i - j depends on the blocks' difference and
    the place inside the tile alone.
    """
    if tiles.distance is not None:
        return None, None
    size, (height, width) = tiles.size, tiles.bucket.shape[1:]
    most = int((tiles.query_block - tiles.key_block).max()) if len(tiles.query_block) else 0
    least = int((tiles.query_block - tiles.key_block).min()) if len(tiles.query_block) else 0
    row, column = (torch.arange(n, device=position_bias.device) for n in (height, width))
    # Negative block differences (bidirectional attention) index from the end, as in Python.
    difference_F = torch.cat([torch.arange(0, most + 1), torch.arange(min(least, 0), 0)])
    offsets_FSS = (
        difference_F.to(position_bias.device)[:, None, None] * size + row[:, None] - column
    )
    offsets_FSS = offsets_FSS.abs().clamp_max_(len(position_bias) - 1)
    return position_bias[offsets_FSS], offsets_FSS


def _segment_toeplitz(position_bias: Tensor, tiles: Tiles) -> Tensor | None:
    """Position bias of a segment, [1, R, C], for `_segment_sums`: rows are pieces of one line."""
    if tiles.distance is not None:
        return None
    height, width = tiles.bucket.shape[1:]
    distance = torch.arange(1 - height, width, device=position_bias.device).abs_()
    line = position_bias[distance.clamp_max_(len(position_bias) - 1)]
    return line.unfold(0, width, 1).flip(0)[None]


def _distance(tiles: Tiles, part: slice, position_bias: Tensor) -> Tensor:
    """Table index of every pair of a chunk of tiles."""
    assert tiles.distance is not None
    return tiles.distance[part].clamp_max(len(position_bias) - 1)


def _pair_bias(
    position_bias: Tensor, toeplitz_FSS: Tensor | None, table: Tensor, tiles: Tiles, part: slice
) -> Tensor:
    """Position plus time bias of a chunk of tiles, [n, S, S]; HIDDEN_BIAS where not visible."""
    bucket_nSS = _once(tiles.bucket[part])
    bias_nSS = table.index_select(0, bucket_nSS.flatten().to(torch.int32)).view(bucket_nSS.shape)
    if toeplitz_FSS is not None:
        if tiles.rows is not None:
            return bias_nSS.add_(toeplitz_FSS)
        difference_n = tiles.query_block[part] - tiles.key_block[part]
        return bias_nSS.add_(_gather(toeplitz_FSS, difference_n % len(toeplitz_FSS)))
    assert tiles.distance is not None
    distance_nSS = _once(tiles.distance[part]).clamp_max(len(position_bias) - 1)
    return bias_nSS.add_(position_bias[distance_nSS])


def _once(pairs_nSS: Tensor) -> Tensor:
    """One row of each tile, where all rows are the same memory: queries that read alike."""
    return pairs_nSS if pairs_nSS.stride(1) else pairs_nSS[:, :1]


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
        if torch.is_grad_enabled():
            return _TileAttention.apply(*factors)
        return _sums(*factors)
