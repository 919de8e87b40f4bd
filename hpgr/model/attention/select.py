"""Anchors: the visible keys most similar to each query, exact and on its own.

Every query is scored against the keys that it may see. The best scores are found level by level
(`hpgr.largest`), so that the product alone grows with the length.

Shape legend (suffixes of names): Q queries, K keys, q queries of one chunk, k keys of one chunk, R
width of the signal space, A anchors, N segments, n places of all segments.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.largest import FOLD, largest
from hpgr.model.attention.cover import HIDDEN, Tiles
from hpgr.model.precision import autocast_off, wide
from hpgr.model.shapes import Float, Int
from hpgr.model.unit import unit

TIE = 1e-6  # what one place newer is worth: above rounding, below what tells items apart
QUERIES_AT_A_TIME = 256  # on a CPU, at most
FEW_QUERIES = 32  # fewer than these are scored together with the next history's
GATHERED_AT_A_TIME = 1024  # queries on a CPU, whose anchors' keys stay in its cache
ACCELERATOR_QUERIES = 2048  # elsewhere, as few steps as the keys that they span together allow


class Selector(nn.Module):
    """Selects anchors by cosine in a space of its own.

    The projections are its own, so that attention and representation do not compete for one table
    (the finding of DARE, arXiv 2410.02604). `mode` is for interventions: "chosen", "random" (as
    many visible keys, drawn evenly), "none".
    """

    def __init__(self, query_dim: int, key_dim: int, dim: int, *, num_anchors: int) -> None:
        super().__init__()
        self.num_anchors, self.mode = num_anchors, "chosen"
        self.query = nn.Linear(query_dim, dim, bias=False)
        self.key = nn.Linear(key_dim, dim, bias=False)
        for projection in (self.query, self.key):  # starts near the cosine of what comes in
            nn.init.orthogonal_(projection.weight)
        with torch.no_grad():
            if self.query.weight.shape == self.key.weight.shape:
                self.query.weight.copy_(self.key.weight)

    def forward(
        self,
        query_QD: Float[Tensor, "Q D"],
        key_KE: Float[Tensor, "K E"],
        first: Int[Tensor, "Q"],
        end: Int[Tensor, "Q"],
        position_K: Int[Tensor, "K"],
        tiles: Tiles | None = None,
    ) -> tuple[Int[Tensor, "Q A"], Float[Tensor, "Q A"]]:
        """Return the anchors of each query (rows, -1 for none) and their cosines.

        Args:
            query_QD: of any length.
            key_KE: of any length.
            first: first visible key of each query, non-decreasing.
            end: one past the last visible key.
            position_K: place of each key in its history.
            tiles: the same queries and keys, where a caller has covered them.
        """
        query_QR, key_KR = self.query(query_QD), self.key(key_KE)
        # Selection is not smooth: cosines rounded to bfloat16 would tie and select other anchors.
        with autocast_off(query_QD):
            query_QR = unit(wide(query_QR))
            key_KR = unit(wide(key_KR))
            if self.mode != "chosen":
                return self._intervened(query_QR, key_KR, first, end)
            if tiles is not None and tiles.rows is not None and not torch.is_grad_enabled():
                return select_within(query_QR, key_KR, tiles, self.num_anchors, position_K)
            return select(query_QR, key_KR, first, end, self.num_anchors, position_K)

    def _intervened(
        self, query_QR: Tensor, key_KR: Tensor, first: Tensor, end: Tensor
    ) -> tuple[Tensor, Tensor]:
        seen_Q1 = (end - first)[:, None]
        draw_QA = torch.rand(len(first), self.num_anchors, device=first.device)
        anchor_QA = first[:, None] + (draw_QA * seen_Q1).long()
        kept_QA = torch.arange(self.num_anchors, device=first.device) < seen_Q1
        if self.mode == "none":
            kept_QA = torch.zeros_like(kept_QA)
        anchor_QA = torch.where(kept_QA, anchor_QA, -1)
        if not len(key_KR):
            return anchor_QA, torch.zeros_like(draw_QA)
        cosine_QA = torch.einsum("qr,qar->qa", query_QR, key_KR[anchor_QA.clamp_min(0)])
        return anchor_QA, cosine_QA


@contextmanager
def intervened(network: nn.Module, mode: str) -> Iterator[None]:
    """Put every selector of `network` into a `mode` (see `Selector`) for the block."""
    selectors = [module for module in network.modules() if isinstance(module, Selector)]
    for selector in selectors:
        selector.mode = mode
    try:
        yield
    finally:
        for selector in selectors:
            selector.mode = "chosen"


def select(
    query_QR: Float[Tensor, "Q R"],
    key_KR: Float[Tensor, "K R"],
    first: Int[Tensor, "Q"],
    end: Int[Tensor, "Q"],
    num: int,
    position_K: Int[Tensor, "K"] | None = None,
) -> tuple[Int[Tensor, "Q A"], Float[Tensor, "Q A"]]:
    """Return the anchors of each query and their similarities, which carry gradients.

    Arguments as in `select_anchors`; the similarity of no anchor is that of key 0. With the place
    of each key in its history, the newest of equally similar keys come first: events of one item
    are equal, and rounding would choose among them.
    """
    own_QR, other_KR = query_QR.detach(), key_KR.detach()
    if position_K is not None:
        own_QR = functional.pad(own_QR, (0, 1), value=1.0)
        other_KR = torch.cat([other_KR, TIE * position_K[:, None].to(other_KR.dtype)], 1)
    anchor_QA = select_anchors(own_QR, other_KR, first, end, num)
    if not len(key_KR):
        return anchor_QA, query_QR.new_zeros(anchor_QA.shape)
    return anchor_QA, _Similarity.apply(query_QR, key_KR, anchor_QA.clamp_min(0))


def select_within(
    query_QR: Float[Tensor, "Q R"],
    key_KR: Float[Tensor, "K R"],
    tiles: Tiles,
    num: int,
    position_K: Int[Tensor, "K"],
) -> tuple[Int[Tensor, "Q A"], Float[Tensor, "Q A"]]:
    """Return what `select` does, without gradients, where `tiles` are those of segments."""
    assert tiles.rows is not None
    row_Nq, column_Nk = tiles.rows
    cosine_Nqk = tiles.padded(query_QR) @ key_KR[column_Nk].transpose(1, 2)
    worth_Nqk = cosine_Nqk + (TIE * position_K[column_Nk].to(cosine_Nqk.dtype))[:, None]
    worth_Nqk.masked_fill_(tiles.bucket == HIDDEN, -torch.inf)
    column_nA, best_nA = largest(worth_Nqk.flatten(0, 1), min(num, worth_Nqk.shape[2]))
    cosine_nA = cosine_Nqk.flatten(0, 1).gather(1, column_nA)
    anchor_nA = column_nA + column_Nk[:, :1].expand(row_Nq.shape).reshape(-1, 1)
    anchor_nA = torch.where(best_nA > -torch.inf, anchor_nA, -1)
    short = num - column_nA.shape[1]  # places without an anchor
    return (
        functional.pad(tiles.of_queries(anchor_nA), (0, short), value=-1),
        functional.pad(tiles.of_queries(cosine_nA), (0, short)),
    )


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
    sizes = _chunks(first)
    chunks = list(zip(*(x.split(sizes) for x in (first, end, query_QR)), strict=True))
    # All bounds at once, and one memory for all scores: its pages cost as much as the product.
    extremes = [torch.stack([f[0], f[-1], e.min(), e.max()]) for f, e, _ in chunks]
    bounds = torch.stack(extremes).cpu().tolist()
    longest = _divisible(max(stop - start for start, _, _, stop in bounds), num)
    memory = key_KR.new_empty(max(sizes) * longest)
    padded_KR = functional.pad(key_KR, (0, 0, 0, longest))
    for anchor_qA, (first_q, end_q, query_qR), bound in zip(
        anchor_QA.split(sizes), chunks, bounds, strict=True
    ):
        start, left, right, stop = bound
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
        column_qA, best_qA = largest(score_qk, min(num, width))
        column_qA = torch.where(best_qA > -torch.inf, column_qA + start, -1)
        anchor_qA[:, : column_qA.shape[1]] = column_qA
    return anchor_QA


def _chunks(first: Int[Tensor, "Q"]) -> list[int]:
    """Numbers of neighbouring queries that are scored together.

    On a CPU a chunk ends with its history, unless that leaves few: keys of another are no use.
    """
    step, borders = ACCELERATOR_QUERIES, []
    if first.device.type == "cpu":
        step, borders = QUERIES_AT_A_TIME, (first.diff().nonzero()[:, 0] + 1).tolist()
    sizes: list[int] = []
    low = 0
    for border in (*borders, len(first)):
        while border - low > step:
            sizes.append(step)
            low += step
        if border - low >= FEW_QUERIES:
            sizes.append(border - low)
            low = border
    return [*sizes, len(first) - low] if low < len(first) else sizes


def _divisible(count: int, num: int) -> int:
    """Fill `count` columns up so that every level of `largest` has whole groups."""
    whole = 1
    while count > FOLD * num * whole:
        whole *= FOLD
    return -(-count // whole) * whole
