"""Weights of the Gaussian mask: bells around anchors and a recent window, where they are not zero.

    weight_ij = 1 in the window, else max over anchors a of peak_a * exp(-(j - a)^2 / (2 sigma^2))

with bells cut to zero beyond 3 sigma. A bell touches one or two blocks of keys, so the weights are
rows of S keys, one for each pair (query, key block) that some bell or the window touches.

Shape legend (suffixes of names): Q queries, A anchors, S keys of a block, P pairs (query, key
block), E bells, each cut at the borders of blocks, W pieces of windows, R rows of weights, e some
of the bells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpgr.model.shapes import Float, Int

REACH = 3  # standard deviations beyond which a bell is cut to zero
BELLS_AT_A_TIME = 1 << 14  # on a CPU: their rows stay in the processor's cache


@dataclass(frozen=True)
class Bells:
    """The pairs that a mask touches, and what lies on each.

    `query` and `block` int64 [P] name the pairs, sorted by block, then query. A bell's `pair`,
    `peak` (query * A + number of the anchor) and `shape` (row of `shapes`, by the place of the
    anchor relative to the block) are int64 [E], ordered by pair; `ranks` lists the bells that are
    1st, 2nd, ... on their pair. `recent_pair` int64 [W] are pairs with a piece of the window, from
    key `recent_from` of the block on.
    """

    size: int
    query: Tensor
    block: Tensor
    pair: Tensor
    peak: Tensor
    shape: Tensor
    shapes: Tensor  # float32 [S + 2 reach, S]
    ranks: list[Tensor]
    recent_pair: Tensor
    recent_from: Tensor


@torch.no_grad()
def find_bells(
    anchor_QA: Int[Tensor, "Q A"],
    first: Int[Tensor, "Q"],
    end: Int[Tensor, "Q"],
    *,
    size: int,
    sigma: float,
    window: int,
) -> Bells:
    """Find every pair (query, key block) with a weight above zero.

    Args:
        anchor_QA: key rows, -1 for none.
        first: first visible key row of each query.
        end: one past the last visible key row.
        size: S.
        sigma: standard deviation of a bell, key rows.
        window: newest visible keys of weight one; 0 for no window.
    """
    num_queries, num_anchors = anchor_QA.shape
    device = anchor_QA.device
    reach = int(REACH * sigma)
    high_QA = torch.where(anchor_QA >= 0, anchor_QA + reach, -1)  # no anchor: an empty range
    peak_E, block_E = _pieces(anchor_QA - reach, high_QA, first, end, size=size)
    shape_E = anchor_QA.flatten().index_select(0, peak_E) - block_E * size + reach
    recent_Q = torch.maximum(first, end - min(window, 1 << 32))
    query_W, block_W = _pieces(recent_Q[:, None], end[:, None] - 1, first, end, size=size)
    recent_W = recent_Q[query_W] - block_W * size

    # One sort of all pieces; those of one pair become neighbours.
    pair_number = torch.cat(
        [block_E * num_queries + peak_E // num_anchors, block_W * num_queries + query_W]
    )
    if len(pair_number) and int(pair_number.max()) < 1 << 31:
        pair_number = pair_number.int()  # sorts in half the time
    pair_number, order = pair_number.sort()
    new = torch.ones_like(pair_number, dtype=torch.bool)
    new[1:] = pair_number[1:] != pair_number[:-1]
    pair = new.cumsum(0) - 1
    start_P = new.nonzero()[:, 0]
    number_P = pair_number.index_select(0, start_P).long()
    rank = torch.arange(len(pair), device=device) - start_P.index_select(0, pair)
    bell = order < len(peak_E)
    order_E, rank_E = order[bell], rank[bell]
    place = torch.arange(size + 2 * reach, device=device)[:, None] - reach
    step = torch.arange(size, device=device) - place
    shapes = torch.exp(-(step.to(torch.float32) ** 2) / (2 * sigma**2))
    return Bells(
        size=size,
        query=number_P % max(1, num_queries),
        block=number_P // max(1, num_queries),
        pair=pair[bell],
        peak=peak_E[order_E],
        shape=shape_E[order_E],
        shapes=shapes * (step.abs() <= reach),
        ranks=[(rank_E == r).nonzero()[:, 0] for r in range(_largest(rank_E) + 1)],
        recent_pair=pair[~bell],
        recent_from=recent_W[order[~bell] - len(peak_E)],
    )


def _pieces(
    low_QA: Tensor, high_QA: Tensor, first: Tensor, end: Tensor, *, size: int
) -> tuple[Tensor, Tensor]:
    """Cut ranges of keys, clipped to the visible ones, at the borders of blocks.

    Returns the number of the range (query * A + column) and the block of each piece.
    """
    low_QA, high_QA = (
        torch.maximum(low_QA, first[:, None]),
        torch.minimum(high_QA, end[:, None] - 1),
    )
    count_QA = torch.where(high_QA < low_QA, 0, high_QA // size - low_QA // size + 1)
    most = int(count_QA.max()) if count_QA.numel() else 0
    step_n = torch.arange(most, device=low_QA.device)
    number = (step_n < count_QA[..., None]).flatten().nonzero()[:, 0]
    block_QAn = low_QA[..., None] // size + step_n
    return number // max(1, most), block_QAn.flatten().index_select(0, number)


def _largest(number: Tensor) -> int:
    return int(number.max()) if len(number) else -1


def bell_weights(
    peak_QA: Float[Tensor, "Q A"], bells: Bells, row_P: Int[Tensor, "P"], num_rows: int
) -> Float[Tensor, "R S"]:
    """Compute the weights under `bells`, with gradients to the peaks.

    Where the highest bells of several anchors are equally high, they share the gradient.

    Args:
        peak_QA: heights of the bells, 0 to 1.
        bells: where they lie.
        row_P: the row of the result that holds each pair.
        num_rows: R; rows that hold no pair are zero.

    Returns:
        [R, S]. Keys of a block that the query does not see may have a weight above zero.
    """
    return _Weights.apply(peak_QA, bells, row_P, num_rows)


class _Weights(torch.autograd.Function):
    """See `bell_weights`."""

    @staticmethod
    def forward(ctx, peak_QA, bells, row_P, num_rows):  # type: ignore[override]
        height, shapes = peak_QA.flatten(), bells.shapes.to(peak_QA.dtype)
        weight_RS = peak_QA.new_zeros(num_rows, bells.size)
        for rank, chosen in enumerate(bells.ranks):
            for number_e in _parts(chosen):
                row_e = row_P[bells.pair[number_e]]
                bell_eS = _heights(bells, number_e, height, shapes)
                if rank:
                    bell_eS = torch.maximum(bell_eS, weight_RS.index_select(0, row_e))
                weight_RS[row_e] = bell_eS
        inside_S = torch.arange(bells.size, device=peak_QA.device)
        row_W = row_P[bells.recent_pair]
        recent_WS = inside_S >= bells.recent_from[:, None]
        weight_RS[row_W] = weight_RS.index_select(0, row_W).masked_fill_(recent_WS, 1.0)
        ctx.save_for_backward(weight_RS, height, row_P)
        ctx.bells, ctx.shape = bells, peak_QA.shape
        return weight_RS

    @staticmethod
    def backward(ctx, grad_RS):  # type: ignore[override]
        weight_RS, height, row_P = ctx.saved_tensors
        bells, shapes = ctx.bells, ctx.bells.shapes.to(height.dtype)

        def won(number_e: Tensor, row_e: Tensor) -> Tensor:
            """The keys at which each bell is the highest; the window is as high as any can be."""
            weight_eS = weight_RS.index_select(0, row_e)
            bell_eS = _heights(bells, number_e, height, shapes)
            return (bell_eS == weight_eS) & (weight_eS < 1)

        # Bells that share their pair with others may tie; only those are counted.
        crowd_P = torch.bincount(bells.pair, minlength=len(row_P)) > 1
        crowd_P, crowded_E = crowd_P.cumsum(0) - 1, crowd_P[bells.pair]
        number_c = crowded_E.nonzero()[:, 0]
        winners_cS = weight_RS.new_zeros(int(crowd_P[-1]) + 1 if len(crowd_P) else 0, bells.size)
        for number_e in _parts(number_c):
            pair_e = bells.pair[number_e]
            winners = won(number_e, row_P[pair_e]).to(winners_cS.dtype)
            winners_cS.index_add_(0, crowd_P[pair_e], winners)
        winners_cS.clamp_min_(1)
        grad_E = torch.empty(len(bells.pair), dtype=grad_RS.dtype, device=grad_RS.device)
        for crowded, numbers in ((True, number_c), (False, (~crowded_E).nonzero()[:, 0])):
            for number_e in _parts(numbers):
                pair_e = bells.pair[number_e]
                row_e = row_P[pair_e]
                part_eS = grad_RS.index_select(0, row_e).mul_(won(number_e, row_e))
                if crowded:
                    part_eS /= winners_cS.index_select(0, crowd_P[pair_e])
                shape_eS = shapes.index_select(0, bells.shape[number_e])
                grad_E[number_e] = part_eS.mul_(shape_eS).sum(1)
        grad = torch.zeros_like(height).index_add_(0, bells.peak, grad_E)
        return grad.view(ctx.shape), None, None, None


def _parts(number: Tensor) -> tuple[Tensor, ...]:
    return number.split(BELLS_AT_A_TIME if number.device.type == "cpu" else max(1, len(number)))


def _heights(bells: Bells, number_e: Tensor, height: Tensor, shapes: Tensor) -> Tensor:
    """Rows [e, S] of some bells."""
    peak_e1 = height.index_select(0, bells.peak[number_e])[:, None]
    return shapes.index_select(0, bells.shape[number_e]).mul_(peak_e1)
