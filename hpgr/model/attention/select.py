"""Anchors: the visible keys most similar to each query, exact and on its own.

Every query is scored against the keys that it may see. The best scores are found level by level:
each of the A best keys lies in one of the A groups with the best maxima, so only those groups are
looked into, and the groups are found in the same way. The product alone grows with the length.

Shape legend (suffixes of names): Q queries, K keys, q queries of one chunk, k keys of one chunk, R
width of the signal space, A anchors, g groups, f keys of a group.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from hpgr.model.shapes import Float, Int

FOLD = 8  # keys or groups of a group
QUERIES_AT_A_TIME = 256  # on a CPU
GATHERED_AT_A_TIME = 1024  # queries on a CPU, whose anchors' keys stay in its cache
ACCELERATOR_QUERIES = 2048  # elsewhere, as few steps as the keys that they span together allow


def select(
    query_QR: Float[Tensor, "Q R"],
    key_KR: Float[Tensor, "K R"],
    first: Int[Tensor, "Q"],
    end: Int[Tensor, "Q"],
    num: int,
) -> tuple[Int[Tensor, "Q A"], Float[Tensor, "Q A"]]:
    """Return the anchors of each query and their similarities, which carry gradients.

    Arguments as in `select_anchors`; the similarity of no anchor is that of key 0.
    """
    anchor_QA = select_anchors(query_QR.detach(), key_KR.detach(), first, end, num)
    return anchor_QA, _Similarity.apply(query_QR, key_KR, anchor_QA.clamp_min(0))


class _Similarity(torch.autograd.Function):
    """Products of each query with its keys; the keys [Q, A, R] are gathered anew when needed."""

    @staticmethod
    def forward(ctx, query_QR, key_KR, anchor_QA):  # type: ignore[override]
        ctx.save_for_backward(query_QR, key_KR, anchor_QA)
        return torch.cat(
            [
                torch.einsum("qr,qar->qa", query_qR, _gathered(key_KR, anchor_qA))
                for query_qR, anchor_qA in _together(query_QR, anchor_QA)
            ]
        )

    @staticmethod
    def backward(ctx, grad_QA):  # type: ignore[override]
        query_QR, key_KR, anchor_QA = ctx.saved_tensors
        grad_query, grad_key_KR = [], torch.zeros_like(key_KR)
        for query_qR, anchor_qA, grad_qA in _together(query_QR, anchor_QA, grad_QA):
            chosen_qAR = _gathered(key_KR, anchor_qA)
            grad_query.append(torch.einsum("qa,qar->qr", grad_qA, chosen_qAR))
            part_qAR = torch.mul(grad_qA[:, :, None], query_qR[:, None], out=chosen_qAR)
            grad_key_KR.index_add_(0, anchor_qA.flatten(), part_qAR.flatten(0, 1))
        return torch.cat(grad_query), grad_key_KR, None


def _together(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of the same queries, a chunk at a time."""
    step = GATHERED_AT_A_TIME if rows[0].device.type == "cpu" else max(1, len(rows[0]))
    return zip(*(x.split(step) for x in rows), strict=True)


def _gathered(key_KR: Tensor, anchor_qA: Tensor) -> Tensor:
    chosen = key_KR.index_select(0, anchor_qA.flatten())
    return chosen.view(*anchor_qA.shape, key_KR.shape[1])


@torch.no_grad()
def select_anchors(
    query_QR: Float[Tensor, "Q R"],
    key_KR: Float[Tensor, "K R"],
    first: Int[Tensor, "Q"],
    end: Int[Tensor, "Q"],
    num: int,
) -> Int[Tensor, "Q A"]:
    """Select the `num` visible keys most similar to each query: rows, best first, -1 for none.

    Args:
        query_QR: signal vectors, normalised.
        key_KR: signal vectors, normalised.
        first: first visible key of each query, non-decreasing.
        end: one past the last visible key.
        num: A.
    """
    device = query_QR.device
    anchor_QA = torch.full((len(query_QR), num), -1, dtype=torch.int64, device=device)
    if not len(query_QR):
        return anchor_QA
    step = QUERIES_AT_A_TIME if device.type == "cpu" else ACCELERATOR_QUERIES
    chunks = list(zip(first.split(step), end.split(step), query_QR.split(step), strict=True))
    # All bounds at once, and one memory for all scores: its pages cost as much as the product.
    extremes = [torch.stack([f.min(), f.max(), e.min(), e.max()]) for f, e, _ in chunks]
    bounds = torch.stack(extremes).cpu().tolist()
    longest = _divisible(max(stop - start for start, _, _, stop in bounds), num)
    memory = key_KR.new_empty(min(step, len(query_QR)) * longest)
    padded_KR = functional.pad(key_KR, (0, 0, 0, longest))
    for number, (first_q, end_q, query_qR) in enumerate(chunks):
        start, left, right, stop = bounds[number]
        if stop <= start:
            continue
        width = _divisible(stop - start, num)
        score_qk = memory[: len(first_q) * width].view(-1, width)
        torch.mm(query_qR, padded_KR[start : start + width].T, out=score_qk)
        # What a query does not see; most columns are seen by all queries and need no work.
        column_k = torch.arange(start, start + width, device=device)
        left, right = left - start, max(0, right - start)
        score_qk[:, :left].masked_fill_(column_k[:left] < first_q[:, None], -torch.inf)
        score_qk[:, right:].masked_fill_(column_k[right:] >= end_q[:, None], -torch.inf)
        column_qA, best_qA = _best(score_qk, min(num, width))
        column_qA = torch.where(best_qA > -torch.inf, column_qA + start, -1)
        anchor_QA[number * step : number * step + len(first_q), : column_qA.shape[1]] = column_qA
    return anchor_QA


def _divisible(count: int, num: int) -> int:
    """Fill `count` columns up so that every level of `_best` has whole groups."""
    unit = 1
    while count > FOLD * num * unit:
        unit *= FOLD
    return -(-count // unit) * unit


def _best(score_qk: Tensor, num: int, *, ordered: bool = True) -> tuple[Tensor, Tensor]:
    """Return column and score of the `num` best of each row, best first where `ordered`."""
    total = score_qk.shape[1]
    if total <= FOLD * num:
        best = score_qk.topk(num, 1, sorted=ordered)
        return best.indices, best.values
    groups = total // FOLD
    # Neighbouring columns belong to different groups: maxima are taken of whole rows of columns.
    score_qfg = score_qk.view(-1, FOLD, groups)
    group_qA, _ = _best(score_qfg.amax(1), num, ordered=False)
    inside_qfA = score_qfg.gather(2, group_qA[:, None, :].expand(-1, FOLD, -1))
    best = inside_qfA.flatten(1).topk(num, 1, sorted=ordered)
    column_qA = best.indices // num * groups + group_qA.gather(1, best.indices % num)
    return column_qA, best.values
