"""Weights of the Gaussian mask: bells around anchors and a recent window, where they are not zero.

    weight_ij = 1 in the window, else max over anchors a of peak_a * exp(-(j - a)^2 / (2 sigma^2))

with bells cut to zero beyond 3 sigma. A bell touches one or two blocks of keys, so the weights are
rows of S keys, one for each pair (query, key block) that some bell or the window touches.

Peaks are laid out at their places in these rows. The maximum over anchors is then one over a few
shifts of the whole layout, whatever the number of anchors.

Shape legend (suffixes of names): Q queries, A anchors, S keys of a block, E pieces of bells, each
inside one block, W pieces of windows, X both, bells first, P pairs (query, key block), R rows of
weights, L places of the layout, K places of a bell, e some of the pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpgr.model.placement import at_a_time
from hpgr.model.shapes import Float, Int

REACH = 3  # standard deviations beyond which a bell is cut to zero
PLACES_AT_A_TIME = 1 << 15  # on a CPU: they stay in the processor's cache
BELLS_AT_A_TIME = 1 << 13


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
    step_K = torch.arange(-reach, reach + 1, device=anchor_QA.device)
    return Bells(
        size=size,
        curve=torch.exp(-(step_K.to(torch.float32) ** 2) / (2 * sigma**2)),
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

    A row of the layout holds S keys and 2 reach more places: in a layout of peaks, those of anchors
    in the blocks beside it; in a layout of weights, zeros, so that a bell that leaves its block at
    either side meets nothing of another row.
    """

    @staticmethod
    def forward(ctx, peak_QA, bells, row_X, num_rows):  # type: ignore[override]
        height, curve, size = peak_QA.flatten(), bells.curve.tolist(), bells.size
        spare = len(curve) - 1
        row_E, row_W = row_X.tensor_split([len(bells.peak)])
        place_E = row_E * (size + spare) + bells.column
        peak_L = height.new_zeros(num_rows * (size + spare) + spare)
        peak_L[place_E] = height.index_select(0, bells.peak)
        weight_L = torch.empty_like(peak_L)
        step = at_a_time(peak_L.device, cpu=PLACES_AT_A_TIME, bytes_each=4)
        memory = torch.empty_like(peak_L[:step])
        for low in range(0, len(peak_L) - spare, step):
            stop = min(low + step, len(peak_L) - spare)
            near = [peak_L[low + k : stop + k] for k in range(len(curve))]
            part, bell = weight_L[low + spare : stop + spare], memory[: stop - low]
            part.copy_(near[spare // 2])
            for k in range(spare // 2):
                torch.maximum(near[k], near[-1 - k], out=bell).mul_(curve[k])
                torch.maximum(part, bell, out=part)
        weight_L[:spare] = 0
        weight_RS, behind = _rows(weight_L, size, spare)
        behind.zero_()
        if len(row_W):
            recent_WS = torch.arange(size, device=row_X.device) >= bells.recent_from[:, None]
            weight_RS[row_W] = weight_RS.index_select(0, row_W).masked_fill_(recent_WS, 1.0)
        ctx.save_for_backward(weight_L, height, place_E)
        ctx.bells, ctx.shape = bells, peak_QA.shape
        return weight_RS

    @staticmethod
    def backward(ctx, grad_RS):  # type: ignore[override]
        weight_L, height, place_E = ctx.saved_tensors
        bells, curve_K = ctx.bells, ctx.bells.curve.to(height.dtype)
        spare = len(curve_K) - 1
        grad_L = torch.zeros_like(weight_L)
        weight_RS, grads_RS = (_rows(x, bells.size, spare)[0] for x in (weight_L, grad_L))
        # The window is as high as any bell can be: nothing is lost where the weight is one.
        torch.mul(grad_RS, weight_RS < 1, out=grads_RS)
        number_L = torch.zeros_like(grad_L)  # of the bells that are the highest
        step_K, found = torch.arange(len(curve_K), device=height.device), []
        for place_e, peak_e in _parts(place_E, bells.peak):
            bell_eK = height.index_select(0, peak_e)[:, None] * curve_K
            won_eK = _under(weight_L, place_e, spare)
            torch.eq(won_eK, bell_eK, out=won_eK)
            number_L.scatter_add_(0, (place_e[:, None] + step_K).flatten(), won_eK.flatten())
            found.append((place_e, won_eK))
        grad_L /= number_L.clamp_min_(1)
        grad_E = [
            _under(grad_L, place_e, spare).mul_(won_eK) @ curve_K for place_e, won_eK in found
        ]
        grad = torch.zeros_like(height).index_add_(0, bells.peak, torch.cat(grad_E))
        return grad.view(ctx.shape), None, None, None


def _rows(layout_L: Tensor, size: int, spare: int) -> tuple[Tensor, Tensor]:
    """Rows [R, S] of a layout of weights, and what lies behind each."""
    width = size + spare
    return layout_L[spare:].view(-1, width).split([size, spare], 1)


def _under(layout_L: Tensor, place_e: Tensor, spare: int) -> Tensor:
    """Read a layout of weights at the places of each bell, [e, K]."""
    window_LK = layout_L.as_strided((len(layout_L) - spare, spare + 1), (1, 1))
    return window_LK.index_select(0, place_e)


def _parts(*pieces: Tensor):
    step = BELLS_AT_A_TIME if pieces[0].device.type == "cpu" else max(1, len(pieces[0]))
    return zip(*(x.split(step) for x in pieces), strict=True)
