"""The additive attention over a list of tiles, with torch's own operations, on any device.

Contributions of key tiles add, so the same code serves small square tiles and one large tile a
segment (`hpgr.model.attention.cover`). The backward pass recomputes the scores, so memory is linear
in the number of tiles' buckets, not in heads x scores.

Shape legend: Q queries, K keys, H heads, D width of a head, N tiles, S tile side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hpgr.model.attention.cover import HIDDEN, Tiles, blocks
from hpgr.model.placement import at_a_time
from hpgr.model.precision import autocast_off, product_type

TILES_AT_A_TIME = 32  # on a CPU: scores of one chunk stay in the processor's cache
HIDDEN_BIAS = -1e4  # SiLU, exp and both their derivatives are exactly 0 here in float32


QUERY, KEY = 0, 1  # side of a tile


def _heads_first(rows: Tensor, tiles: Tiles, side: int) -> Tensor:
    """[R, H, D] -> [blocks, H, S, D], contiguous."""
    if tiles.rows is None:
        return blocks(rows, tiles.size).transpose(1, 2).contiguous()
    return rows[tiles.rows[side]].transpose(1, 2).contiguous()


def _gather(tile_rows: Tensor, index: Tensor) -> Tensor:
    """Blocks `index` of [blocks, H, S, D]; flat rows make it one copy a block."""
    return tile_rows.flatten(1).index_select(0, index).view(-1, *tile_rows.shape[1:])


def _scatter_add(total: Tensor, index: Tensor, part: Tensor) -> None:
    """Add `part` to blocks `index` of `total`; flat rows are a thousand times faster on a CPU."""
    total.flatten(1).index_add_(0, index, part.flatten(1).to(total.dtype))


def _rows(tiles_out: Tensor, tiles: Tiles, side: int, count: int) -> Tensor:
    """[blocks, H, S, D] -> [count, H, D]; rows of padding hold zeros."""
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
    return at_a_time(q.device, cpu=TILES_AT_A_TIME, bytes_each=each)


def _bias(time_bias: Tensor) -> Tensor:
    """Bias by bucket with the hidden entry at its end, [256]."""
    table = time_bias.new_full((HIDDEN + 1,), HIDDEN_BIAS)
    table[: time_bias.shape[0]] = time_bias
    return table


class _TileAttention(torch.autograd.Function):
    """The sum above; see `tile_attention` for arguments."""

    @staticmethod
    def forward(ctx, q, k, v, position_bias, time_bias, weight, tiles, exponential):  # type: ignore[override]
        query = _heads_first(q, tiles, QUERY)
        key, value = (_heads_first(x, tiles, KEY) for x in (k, v))
        toeplitz, _ = _toeplitz(position_bias, tiles)
        table = _bias(time_bias)
        accumulate = torch.promote_types(q.dtype, torch.float32)
        out = torch.zeros((*query.shape[:3], value.shape[3]), dtype=accumulate, device=q.device)
        step = _at_a_time(tiles, q)
        for low in range(0, len(tiles.query_block), step):
            part = slice(low, low + step)
            rows, columns = tiles.query_block[part], tiles.key_block[part]
            scores = _gather(query, rows) @ _gather(key, columns).transpose(-1, -2)
            scores += _pair_bias(position_bias, toeplitz, table, tiles, part)[:, None]
            active = scores.exp_() if exponential else functional.silu(scores, inplace=True)
            if weight is not None:
                active *= weight[part, None]
            _scatter_add(out, rows, active @ _gather(value, columns))
        ctx.save_for_backward(q, k, v, position_bias, time_bias, weight)
        ctx.tiles, ctx.exponential = tiles, exponential
        return _rows(out, tiles, QUERY, tiles.num_queries).to(q.dtype)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        q, k, v, position_bias, time_bias, weight = ctx.saved_tensors
        tiles, exponential = ctx.tiles, ctx.exponential
        query, grad_out = (_heads_first(x, tiles, QUERY) for x in (q, grad))
        key, value = (_heads_first(x, tiles, KEY) for x in (k, v))
        toeplitz, offsets = _toeplitz(position_bias, tiles)
        table = _bias(time_bias)
        accumulate = torch.promote_types(q.dtype, torch.float32)
        grad_q, grad_k, grad_v = (
            torch.zeros(x.shape, dtype=accumulate, device=q.device) for x in (query, key, value)
        )
        grad_position = torch.zeros(
            toeplitz.shape if toeplitz is not None else position_bias.shape,
            dtype=accumulate,
            device=q.device,
        )
        grad_time = torch.zeros(HIDDEN + 1, dtype=accumulate, device=q.device)
        grad_weight = torch.empty_like(weight) if weight is not None else None
        step = _at_a_time(tiles, q)
        for low in range(0, len(tiles.query_block), step):
            part = slice(low, low + step)
            rows, columns = tiles.query_block[part], tiles.key_block[part]
            q_part, g_part = _gather(query, rows), _gather(grad_out, rows)
            k_part, v_part = _gather(key, columns), _gather(value, columns)
            scores = q_part @ k_part.transpose(-1, -2)
            scores += _pair_bias(position_bias, toeplitz, table, tiles, part)[:, None]
            active = scores.exp() if exponential else functional.silu(scores)
            grad_active = g_part @ v_part.transpose(-1, -2)
            if weight is not None and grad_weight is not None:
                grad_weight[part] = (active * grad_active).sum(1, dtype=accumulate)
                part_weight = weight[part, None].to(active.dtype)
                grad_active *= part_weight
                weighted = active * part_weight
            else:
                weighted = active
            _scatter_add(grad_v, columns, weighted.transpose(-1, -2) @ g_part)
            if exponential:
                grad_scores = grad_active.mul_(active)
            else:
                grad_scores = torch.ops.aten.silu_backward(grad_active, scores)
            _scatter_add(grad_q, rows, grad_scores @ k_part)
            _scatter_add(grad_k, columns, grad_scores.transpose(-1, -2) @ q_part)
            pair = grad_scores.sum(1, dtype=accumulate)
            grad_time += torch.bincount(
                tiles.bucket[part].flatten().to(torch.int32),
                pair.flatten(),
                minlength=HIDDEN + 1,
            ).to(accumulate)
            if toeplitz is not None:
                _scatter_add(grad_position, (rows - columns) % len(grad_position), pair)
            else:
                grad_position += torch.bincount(
                    _distance(tiles, part, position_bias).flatten(),
                    pair.flatten(),
                    minlength=len(position_bias),
                ).to(accumulate)
        if offsets is not None:
            grad_position = torch.bincount(
                offsets.flatten(), grad_position.flatten(), minlength=len(position_bias)
            )
        return (
            _rows(grad_q, tiles, QUERY, len(q)).to(q.dtype),
            _rows(grad_k, tiles, KEY, len(k)).to(k.dtype),
            _rows(grad_v, tiles, KEY, len(v)).to(v.dtype),
            grad_position.to(position_bias.dtype),
            grad_time[: len(time_bias)].to(time_bias.dtype),
            grad_weight,
            None,
            None,
        )


def _toeplitz(position_bias: Tensor, tiles: Tiles) -> tuple[Tensor | None, Tensor | None]:
    """Position bias of a tile by block difference, [differences, S, S], and its table indices.

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
    difference = torch.cat([torch.arange(0, most + 1), torch.arange(min(least, 0), 0)])
    offsets = difference.to(position_bias.device)[:, None, None] * size + row[:, None] - column
    offsets = offsets.abs().clamp_max_(len(position_bias) - 1)
    return position_bias[offsets], offsets


def _distance(tiles: Tiles, part: slice, position_bias: Tensor) -> Tensor:
    """Table index of every pair of a chunk of tiles."""
    assert tiles.distance is not None
    return tiles.distance[part].clamp_max(len(position_bias) - 1)


def _pair_bias(
    position_bias: Tensor, toeplitz: Tensor | None, table: Tensor, tiles: Tiles, part: slice
) -> Tensor:
    """Position plus time bias of a chunk of tiles, [chunk, S, S]; HIDDEN_BIAS where not visible."""
    bucket = tiles.bucket[part]
    bias = table.index_select(0, bucket.flatten().to(torch.int32)).view(bucket.shape)
    if toeplitz is not None:
        difference = tiles.query_block[part] - tiles.key_block[part]
        return bias.add_(_gather(toeplitz, difference % len(toeplitz)))
    return bias.add_(position_bias[_distance(tiles, part, position_bias)])


def tile_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiles: Tiles,
    *,
    position_bias: Tensor,
    time_bias: Tensor,
    weight: Tensor | None = None,
    exponential: bool = False,
) -> Tensor:
    """Compute the additive attention sum; see `hpgr.model.attention.entry.additive_attention`."""
    dtype = product_type(q, k, v)
    with autocast_off(q):
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        return _TileAttention.apply(q, k, v, position_bias, time_bias, weight, tiles, exponential)
