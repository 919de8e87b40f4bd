"""Weights of the Gaussian mask: bells around anchors and a recent window, where they are not zero.

    weight_ij = 1 in the window, else max over anchors a of peak_a * exp(-(j - a)^2 / (2 sigma^2))

with bells cut to zero beyond 3 sigma. A bell touches one or two blocks of keys, so the weights are
rows of S keys, one for each pair (query, key block) that some bell or the window touches.

Bells are written over each other, the highest remains; a backward pass reads where that was.

Shape legend (suffixes of names): Q queries, A anchors, S keys of a block, E pieces of bells, each
inside one block, W pieces of windows, X both, bells first, P pairs (query, key block), R rows of
weights, r some of the rows, L places of the layout, K places of a bell, e some of the pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hpgr.model.shapes import Float, Int

REACH = 3  # standard deviations beyond which a bell is cut to zero
ROWS_AT_A_TIME = 1 << 15
BELLS_AT_A_TIME = 1 << 13  # on a CPU: their places stay in the processor's cache


@dataclass(frozen=True)
class Bells:
    """The pieces of all bells and windows.

    `query` and `block` int64 [X] say where each piece lies. Of a bell's piece, `peak` int64 [E] is
    query * A + number of the anchor, and `column` int64 [E] the anchor's key in the block, plus the
    reach. `recent_from` int64 [W] is the first key of the block that a window's piece covers.
    """

    size: int
    curve: Tensor  # float32 [K], K = 2 reach + 1: a bell of height one
    query: Tensor
    block: Tensor
    peak: Tensor
    column: Tensor
    recent_from: Tensor

    def pairs(self, num_queries: int) -> tuple[Int[Tensor, "P"], Int[Tensor, "P"], Tensor]:
        """Return query and block of each pair, sorted by block, then query, and the pieces' pairs.

        int64 [P], [P] and [X].
        """
        number_X = self.block * num_queries + self.query
        if len(number_X) and int(number_X.max()) < 1 << 31:
            number_X = number_X.int()  # sorts in half the time
        number_X, order_X = number_X.sort()
        new_X = torch.ones_like(number_X, dtype=torch.bool)
        new_X[1:] = number_X[1:] != number_X[:-1]
        pair_X = torch.empty_like(order_X).scatter_(0, order_X, new_X.cumsum(0) - 1)
        number_P = number_X[new_X].long()
        return number_P % max(1, num_queries), number_P // max(1, num_queries), pair_X


def bell_curve(sigma: float, device: torch.device) -> Float[Tensor, "K"]:
    """Compute a bell of height one, `REACH` standard deviations to either side."""
    reach = int(REACH * sigma)
    step_K = torch.arange(-reach, reach + 1, device=device)
    return torch.exp(-(step_K.to(torch.float32) ** 2) / (2 * sigma**2))


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
    """Cut every bell and window at the borders of blocks of keys.

    Args:
        anchor_QA: key rows, -1 for none; equal ones of a query have equal peaks.
        first: first visible key row of each query.
        end: one past the last visible key row.
        size: S.
        sigma: standard deviation of a bell, key rows.
        window: newest visible keys of weight one; 0 for no window.
    """
    reach = int(REACH * sigma)
    high_QA = torch.where(anchor_QA >= 0, anchor_QA + reach, -1)  # no anchor: an empty range
    peak_E, block_E = _pieces(anchor_QA - reach, high_QA, first, end, size=size)
    recent_Q = torch.maximum(first, end - min(window, 1 << 32))
    query_W, block_W = _pieces(recent_Q[:, None], end[:, None] - 1, first, end, size=size)
    return Bells(
        size=size,
        curve=bell_curve(sigma, anchor_QA.device),
        query=torch.cat([peak_E // anchor_QA.shape[1], query_W]),
        block=torch.cat([block_E, block_W]),
        peak=peak_E,
        column=anchor_QA.flatten().index_select(0, peak_E) - block_E * size + reach,
        recent_from=recent_Q[query_W] - block_W * size,
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


def bell_weights(
    peak_QA: Float[Tensor, "Q A"], bells: Bells, row_X: Int[Tensor, "X"], num_rows: int
) -> Float[Tensor, "R S"]:
    """Compute the weights under `bells`, with gradients to the peaks.

    Where the highest bells of several anchors are equally high, they share the gradient.

    Args:
        peak_QA: heights of the bells, 0 to 1.
        bells: where they lie.
        row_X: the row of the result that holds each piece.
        num_rows: R; rows that hold no piece are zero.

    Returns:
        [R, S]. Keys of a block that the query does not see may have a weight above zero.
    """
    return _Weights.apply(peak_QA, bells, row_X, num_rows)


class _Weights(torch.autograd.Function):
    """See `bell_weights`.

    A row of the layout holds S keys and 2 reach more places, which the part of a bell outside its
    block falls on: behind its own row or, from the left, behind the row before.
    """

    @staticmethod
    def forward(ctx, peak_QA, bells, row_X, num_rows):  # type: ignore[override]
        height, curve_K = peak_QA.flatten(), bells.curve.to(peak_QA.dtype)
        row_E, row_W = row_X.tensor_split([len(bells.peak)])
        weight_RS = height.new_empty(num_rows, bells.size)
        for weight_rS, place_E, peak_E in _some_rows(weight_RS, row_E, bells):
            layout_L, layout_rS, _ = _layout(height, len(weight_rS), bells)
            for place_e, peak_e in _parts(place_E, peak_E):
                bell_eK = height.index_select(0, peak_e)[:, None] * curve_K
                layout_L.scatter_reduce_(0, _cells(place_e, curve_K), bell_eK.flatten(), "amax")
            weight_rS.copy_(layout_rS)
        if len(row_W):
            recent_WS = torch.arange(bells.size, device=row_X.device) >= bells.recent_from[:, None]
            weight_RS[row_W] = weight_RS.index_select(0, row_W).masked_fill_(recent_WS, 1.0)
        ctx.save_for_backward(weight_RS, height, row_E)
        ctx.bells, ctx.shape = bells, peak_QA.shape
        return weight_RS

    @staticmethod
    def backward(ctx, grad_RS):  # type: ignore[override]
        weight_RS, height, row_E = ctx.saved_tensors
        bells, curve_K = ctx.bells, ctx.bells.curve.to(height.dtype)
        grad = torch.zeros_like(height)
        grads = grad_RS.split(ROWS_AT_A_TIME)
        for (weight_rS, place_E, peak_E), grad_rS in zip(
            _some_rows(weight_RS, row_E, bells), grads, strict=True
        ):
            layout_L, layout_rS, outside = _layout(height, len(weight_rS), bells)
            layout_rS.copy_(weight_rS)
            highest = []  # 1 where a bell is the highest, else 0
            for place_e, peak_e in _parts(place_E, peak_E):
                bell_eK = height.index_select(0, peak_e)[:, None] * curve_K
                highest.append(bell_eK.eq_(_under(layout_L, place_e, curve_K)))
            layout_L.zero_()
            for (place_e,), highest_eK in zip(_parts(place_E), highest, strict=True):
                layout_L.scatter_add_(0, _cells(place_e, curve_K), highest_eK.flatten())
            # Equally high bells share a gradient. The window is as high as any bell can be.
            torch.div(grad_rS, layout_rS.clamp_min_(1), out=layout_rS).mul_(weight_rS < 1)
            for places in outside:
                places.zero_()
            for (place_e, peak_e), highest_eK in zip(_parts(place_E, peak_E), highest, strict=True):
                grad_eK = highest_eK.mul_(_under(layout_L, place_e, curve_K))
                grad.index_add_(0, peak_e, grad_eK @ curve_K)
        return grad.view(ctx.shape), None, None, None


def _some_rows(
    weight_RS: Tensor, row_E: Tensor, bells: Bells
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Some rows of weights at a time, and the places in their layout and the peaks of their bells.

    All rows in one layout would take more memory than the weights, where blocks are small.
    """
    place_E, peak_E = row_E * (bells.size + len(bells.curve) - 1) + bells.column, bells.peak
    if len(weight_RS) <= ROWS_AT_A_TIME:
        yield weight_RS, place_E, peak_E
        return
    part_E = row_E // ROWS_AT_A_TIME
    for number, weight_rS in enumerate(weight_RS.split(ROWS_AT_A_TIME)):
        inside = (part_E == number).nonzero()[:, 0]
        before = number * ROWS_AT_A_TIME * (bells.size + len(bells.curve) - 1)
        yield weight_rS, place_E[inside] - before, peak_E[inside]


def _layout(height: Tensor, num_rows: int, bells: Bells) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Make a layout of zeros: all its places [L], rows of keys [R, S], and what lies outside."""
    spare = len(bells.curve) - 1
    layout_L = height.new_zeros(num_rows * (bells.size + spare) + spare)
    rows, behind = layout_L[spare:].view(-1, bells.size + spare).split([bells.size, spare], 1)
    return layout_L, rows, [layout_L[:spare], behind]


def _parts(*pieces: Tensor) -> Iterator[tuple[Tensor, ...]]:
    step = BELLS_AT_A_TIME if pieces[0].device.type == "cpu" else max(1, len(pieces[0]))
    return zip(*(x.split(step) for x in pieces), strict=True)


def _cells(place_e: Tensor, curve_K: Tensor) -> Tensor:
    """Number the places under some bells, [e K]."""
    return (place_e[:, None] + torch.arange(len(curve_K), device=place_e.device)).flatten()


def _under(layout_L: Tensor, place_e: Tensor, curve_K: Tensor) -> Tensor:
    """Read what `_cells` numbers, [e, K]: windows of one line."""
    window_LK = layout_L.as_strided((len(layout_L) - len(curve_K) + 1, len(curve_K)), (1, 1))
    return window_LK.index_select(0, place_e)
