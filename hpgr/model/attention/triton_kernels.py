"""The additive attention over tiles of gathered queries as Triton kernels, without atomics.

A query's sum comes from several tiles. Each tile writes its rows to a buffer, and one more kernel
adds up the rows of a query in the order of the tiles, so that results do not depend on timing.
The gradients of keys and values are summed by one program a key block. Only the two bias tables'
gradients are left to torch's own sums.

Imported where Triton is installed, when these kernels are asked for. With TRITON_INTERPRET=1 they
run on a CPU.

Shape legend (suffixes of names): Q queries, K keys, H heads, d width of a head's queries and keys,
e of its values, N tiles, G query rows and S keys of a tile, B blocks of keys. In kernels D and E
are d and e filled up to a power of two.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hpgr.model.attention.bias import PairBias
from hpgr.model.attention.cover import HIDDEN
from hpgr.model.attention.key_tiles import KeyTiles
from hpgr.model.precision import autocast_off, product_type

LEAST_SIDE = 16  # of the factors of tl.dot


@triton.jit
def _rows(x, row, seen, head, place, num_heads, width):
    """Rows [*, width] of one head of x [rows, heads, width], zero where not `seen`."""
    at = (row[:, None] * num_heads + head) * width + place[None, :]
    return tl.load(x + at, mask=seen[:, None] & (place < width)[None, :], other=0.0)


@triton.jit
def _put_rows(x, value, row, seen, head, place, num_heads, width):
    """Store what `_rows` loads."""
    at = (row[:, None] * num_heads + head) * width + place[None, :]
    value = value.to(x.dtype.element_ty)
    tl.store(x + at, value, mask=seen[:, None] & (place < width)[None, :])


@triton.jit
def _bias_of(base, bucket, position, time, tile, last, buckets, G: tl.constexpr, S: tl.constexpr):
    """Bias [G, S] of the pairs of a tile, and which of them are visible."""
    g, s = tl.arange(0, G), tl.arange(0, S)
    bucket_of = tl.load(bucket + (tile * G + g[:, None]) * S + s[None, :]).to(tl.int32)
    distance = tl.load(base + tile * G + g)[:, None] - s[None, :]
    distance = tl.minimum(tl.maximum(distance, 0), last)
    bias = tl.load(position + distance).to(tl.float32)
    bias += tl.load(time + bucket_of, mask=bucket_of < buckets, other=0.0).to(tl.float32)
    return bias, bucket_of != 255


@triton.jit
def _active(score, seen, EXPONENTIAL: tl.constexpr):
    """f(score) and its derivative, zero where not `seen`."""
    score = tl.where(seen, score, 0.0)
    if EXPONENTIAL:
        active = tl.exp(score)
        slope = active
    else:
        gate = tl.sigmoid(score)
        active = score * gate
        slope = gate * (1.0 + score * (1.0 - gate))
    return tl.where(seen, active, 0.0), tl.where(seen, slope, 0.0)


@triton.jit
def _forward(
    q, k, v, rows, block, base, bucket, weight, position, time, part,
    num_queries, num_keys, num_heads, d, e, last, buckets,
    G: tl.constexpr, S: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    WEIGHTED: tl.constexpr, EXPONENTIAL: tl.constexpr,
):  # fmt: skip
    """Write the sums of one tile and head, [G, e], to `part`."""
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    g, s, wide, deep = tl.arange(0, G), tl.arange(0, S), tl.arange(0, D), tl.arange(0, E)
    row = tl.load(rows + tile * G + g)
    key = tl.load(block + tile) * S + s
    query_GD = _rows(q, row, row < num_queries, head, wide, num_heads, d)
    key_SD = _rows(k, key, key < num_keys, head, wide, num_heads, d)
    value_SE = _rows(v, key, key < num_keys, head, deep, num_heads, e)
    bias, seen = _bias_of(base, bucket, position, time, tile, last, buckets, G, S)
    score = tl.dot(query_GD, tl.trans(key_SD), input_precision="ieee") + bias
    active, _ = _active(score, seen, EXPONENTIAL)
    if WEIGHTED:
        active *= tl.load(weight + (tile * G + g[:, None]) * S + s[None, :])
    read_GE = tl.dot(active.to(value_SE.dtype), value_SE, input_precision="ieee")
    _put_rows(part, read_GE, tile * G + g, g < G, head, deep, num_heads, e)


@triton.jit
def _sum_places(part, pointer, place, out, width, W: tl.constexpr):
    """Add up the rows [width] of one query."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, W)
    total = tl.zeros([W], tl.float32)
    for index in range(tl.load(pointer + row), tl.load(pointer + row + 1)):
        at = tl.load(place + index) * width + column
        total += tl.load(part + at, mask=column < width, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, total.to(out.dtype.element_ty), mask=column < width)


@triton.jit
def _backward_queries(
    q, k, v, grad, rows, block, base, bucket, weight, position, time, part, grad_bias, grad_weight,
    num_queries, num_keys, num_heads, d, e, last, buckets,
    G: tl.constexpr, S: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    WEIGHTED: tl.constexpr, EXPONENTIAL: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile to its query rows, biases and weights, over all heads."""
    tile = tl.program_id(0).to(tl.int64)
    g, s, wide, deep = tl.arange(0, G), tl.arange(0, S), tl.arange(0, D), tl.arange(0, E)
    row = tl.load(rows + tile * G + g)
    key = tl.load(block + tile) * S + s
    pair = (tile * G + g[:, None]) * S + s[None, :]
    bias, seen = _bias_of(base, bucket, position, time, tile, last, buckets, G, S)
    weight_GS = tl.full([G, S], 1.0, tl.float32)
    if WEIGHTED:
        weight_GS = tl.load(weight + pair).to(tl.float32)
    to_bias = tl.zeros([G, S], tl.float32)
    to_weight = tl.zeros([G, S], tl.float32)
    for head in range(num_heads):
        query_GD = _rows(q, row, row < num_queries, head, wide, num_heads, d)
        grad_GE = _rows(grad, row, row < num_queries, head, deep, num_heads, e)
        key_SD = _rows(k, key, key < num_keys, head, wide, num_heads, d)
        value_SE = _rows(v, key, key < num_keys, head, deep, num_heads, e)
        score = tl.dot(query_GD, tl.trans(key_SD), input_precision="ieee") + bias
        active, slope = _active(score, seen, EXPONENTIAL)
        grad_active = tl.dot(grad_GE, tl.trans(value_SE), input_precision="ieee")
        to_weight += active * grad_active
        grad_score = grad_active * weight_GS * slope
        to_bias += grad_score
        read_GD = tl.dot(grad_score.to(key_SD.dtype), key_SD, input_precision="ieee")
        _put_rows(part, read_GD, tile * G + g, g < G, head, wide, num_heads, d)
    tl.store(grad_bias + pair, to_bias)
    if WEIGHTED:
        tl.store(grad_weight + pair, to_weight.to(grad_weight.dtype.element_ty))


@triton.jit
def _backward_keys(
    q, k, v, grad, rows, bounds, tiles, base, bucket, weight, position, time, grad_k, grad_v,
    num_queries, num_keys, num_heads, d, e, last, buckets,
    G: tl.constexpr, S: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    WEIGHTED: tl.constexpr, EXPONENTIAL: tl.constexpr,
):  # fmt: skip
    """Gradients of one key block and head, over the tiles of the block."""
    block, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    g, s, wide, deep = tl.arange(0, G), tl.arange(0, S), tl.arange(0, D), tl.arange(0, E)
    key = block * S + s
    key_SD = _rows(k, key, key < num_keys, head, wide, num_heads, d)
    value_SE = _rows(v, key, key < num_keys, head, deep, num_heads, e)
    to_key = tl.zeros([S, D], tl.float32)
    to_value = tl.zeros([S, E], tl.float32)
    for number in range(tl.load(bounds + block), tl.load(bounds + block + 1)):
        tile = tl.load(tiles + number)
        row = tl.load(rows + tile * G + g)
        query_GD = _rows(q, row, row < num_queries, head, wide, num_heads, d)
        grad_GE = _rows(grad, row, row < num_queries, head, deep, num_heads, e)
        bias, seen = _bias_of(base, bucket, position, time, tile, last, buckets, G, S)
        score = tl.dot(query_GD, tl.trans(key_SD), input_precision="ieee") + bias
        active, slope = _active(score, seen, EXPONENTIAL)
        grad_active = tl.dot(grad_GE, tl.trans(value_SE), input_precision="ieee")
        if WEIGHTED:
            weight_GS = tl.load(weight + (tile * G + g[:, None]) * S + s[None, :])
            active *= weight_GS
            grad_active *= weight_GS
        grad_score = (grad_active * slope).to(query_GD.dtype)
        to_value += tl.dot(tl.trans(active.to(grad_GE.dtype)), grad_GE, input_precision="ieee")
        to_key += tl.dot(tl.trans(grad_score), query_GD, input_precision="ieee")
    _put_rows(grad_k, to_key, key, key < num_keys, head, wide, num_heads, d)
    _put_rows(grad_v, to_value, key, key < num_keys, head, deep, num_heads, e)


def triton_attention(
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
        return _TritonAttention.apply(
            *factors, position_bias, time_bias, weight, tiles, exponential
        )


class _TritonAttention(torch.autograd.Function):
    """See `triton_attention`."""

    @staticmethod
    def forward(ctx, q_QHd, k_KHd, v_KHe, position_bias, time_bias, weight_NGS, tiles, exponential):  # type: ignore[override]
        shared = _Shared(q_QHd, v_KHe, tiles, position_bias, time_bias, weight_NGS, exponential)
        pairs = (tiles.bucket, shared.weight, position_bias, time_bias)
        part = q_QHd.new_empty(tiles.rows.numel(), *v_KHe.shape[1:])
        out_QHe = q_QHd.new_empty(len(q_QHd), *v_KHe.shape[1:])
        if len(tiles.block):
            _forward[(len(tiles.block), q_QHd.shape[1])](
                q_QHd, k_KHd, v_KHe, tiles.rows, tiles.block, tiles.base, *pairs, part,
                *shared.numbers, **shared.constants,
            )  # fmt: skip
        _add_up(part, tiles, out_QHe)
        ctx.save_for_backward(q_QHd, k_KHd, v_KHe, position_bias, time_bias, weight_NGS)
        ctx.tiles, ctx.exponential = tiles, exponential
        return out_QHe

    @staticmethod
    def backward(ctx, grad_QHe):  # type: ignore[override]
        q_QHd, k_KHd, v_KHe, position_bias, time_bias, weight_NGS = ctx.saved_tensors
        tiles = ctx.tiles
        shared = _Shared(q_QHd, v_KHe, tiles, position_bias, time_bias, weight_NGS, ctx.exponential)
        pairs = (tiles.bucket, shared.weight, position_bias, time_bias)
        factors = (q_QHd, k_KHd, v_KHe, grad_QHe.to(q_QHd.dtype).contiguous())
        part = q_QHd.new_empty(tiles.rows.numel(), *q_QHd.shape[1:])
        grad_q, grad_k, grad_v = (torch.empty_like(x) for x in (q_QHd, k_KHd, v_KHe))
        grad_bias_NGS = torch.empty(tiles.bucket.shape, device=q_QHd.device)
        grad_weight_NGS = torch.empty_like(weight_NGS) if weight_NGS is not None else None
        if len(tiles.block):
            _backward_queries[(len(tiles.block),)](
                *factors, tiles.rows, tiles.block, tiles.base, *pairs, part, grad_bias_NGS,
                grad_weight_NGS if weight_NGS is not None else shared.weight,
                *shared.numbers, **shared.constants,
            )  # fmt: skip
        _add_up(part, tiles, grad_q)
        if len(k_KHd):
            bounds, of_blocks = tiles.by_block
            _backward_keys[(len(bounds) - 1, q_QHd.shape[1])](
                *factors, tiles.rows, bounds, of_blocks, tiles.base, *pairs, grad_k, grad_v,
                *shared.numbers, **shared.constants,
            )  # fmt: skip
        bias = PairBias(position_bias, time_bias, tiles)
        bias.add_grad(slice(None), grad_bias_NGS)
        return (
            grad_q, grad_k, grad_v, bias.grad_position(), bias.grad_time(), grad_weight_NGS,
            None, None,
        )  # fmt: skip


class _Shared:
    """Arguments that all kernels of one call share."""

    def __init__(
        self,
        q_QHd: Tensor,
        v_KHe: Tensor,
        tiles: KeyTiles,
        position_bias: Tensor,
        time_bias: Tensor,
        weight_NGS: Tensor | None,
        exponential: bool,
    ) -> None:
        d, e = q_QHd.shape[2], v_KHe.shape[2]
        self.weight = weight_NGS.contiguous() if weight_NGS is not None else position_bias
        self.numbers = (
            len(q_QHd), len(v_KHe), q_QHd.shape[1], d, e, len(position_bias) - 1, len(time_bias),
        )  # fmt: skip
        self.constants: dict[str, Any] = {
            "G": tiles.rows.shape[1],
            "S": tiles.size,
            "D": max(LEAST_SIDE, triton.next_power_of_2(d)),
            "E": max(LEAST_SIDE, triton.next_power_of_2(e)),
            "WEIGHTED": weight_NGS is not None,
            "EXPONENTIAL": exponential,
        }


def _add_up(part: Tensor, tiles: KeyTiles, out: Tensor) -> None:
    """Sum the rows of each query: part [N * G, H, d] -> out [Q, H, d]."""
    if len(out):
        width = out[0].numel()
        pointer, place = tiles.by_query
        _sum_places[(len(out),)](part, pointer, place, out, width, W=triton.next_power_of_2(width))


assert HIDDEN == 255  # a constant in `_bias_of`: kernels read no Python globals
