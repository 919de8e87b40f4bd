"""Preference-guided sparse attention: a query attends to its anchors among past items.

1. Preference signals: the A visible history items most similar (cosine) to the query are its
   anchors; the similarity of each passes a sigmoid and becomes the height of its peak, so that
   selection receives a gradient.
2. Gaussian mask: weight_ij = max over anchors a of peak_a * exp(-(j - a)^2 / (2 sigma^2)), zero
   beyond 3 sigma, one in the window of the most recent positions. It multiplies the attention
   weight after the SiLU.
3. Sparse: only tiles in which some weight is not zero are listed, so nothing else is computed.

Published: top-K signals and a multi-peak Gaussian mask (arXiv 2603.00980). Ours: cosine with its
own projection, the sigmoid, the maximum over peaks, the cut at 3 sigma, the recent window.

Shape legend: Q queries, K keys, A anchors, R width of the signal space, N tiles, S tile side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.model.attention.cover import Tiles, blocks, build_tiles, cover
from hpgr.model.precision import autocast_off, wide
from hpgr.model.shapes import Float, Int

QUERIES_AT_A_TIME = 256  # on a CPU
ACCELERATOR_QUERIES = 2048  # elsewhere, as few steps as the keys that they span together allow
REACH = 3  # standard deviations beyond which a peak is cut to zero


@dataclass(frozen=True)
class PreferenceMask:
    """The mask of one set of queries.

    `anchor` int64 [Q, A] is the key row of each anchor, -1 where fewer items are visible; `peak`
    [Q, A] its height; `tiles` the tiles with a weight above zero; `weight` [N, S, S] the weights.
    """

    anchor: Tensor
    peak: Tensor
    tiles: Tiles
    weight: Tensor


@torch.no_grad()
def select_anchors(
    query: Float[Tensor, "Q R"],
    key: Float[Tensor, "K R"],
    first: Int[Tensor, "Q"],
    last: Int[Tensor, "Q"],
    num: int,
) -> Int[Tensor, "Q A"]:
    """Select the `num` visible keys most similar to each query: rows, best first, -1 for none.

    Args:
        query: [Q, R], normalised.
        key: [K, R], normalised.
        first: first visible key of each query, int64 [Q], non-decreasing.
        last: one past the last visible key, int64 [Q].
        num: A.
    """
    anchor = torch.full((len(query), num), -1, dtype=torch.int64, device=query.device)
    step = QUERIES_AT_A_TIME if query.device.type == "cpu" else ACCELERATOR_QUERIES
    for low in range(0, len(query), step):
        part = slice(low, low + step)
        start, stop = int(first[part].min()), int(last[part].max())
        if stop <= start:
            continue
        similarity = query[part] @ key[start:stop].T
        column = torch.arange(start, stop, device=query.device)
        hidden = (column < first[part, None]) | (column >= last[part, None])
        similarity.masked_fill_(hidden, -torch.inf)
        best = similarity.topk(min(num, stop - start), dim=1)
        anchor[part, : best.indices.shape[1]] = torch.where(
            best.values > -torch.inf, best.indices + start, -1
        )
    return anchor


class PreferenceSignals(nn.Module):
    """Selects anchors by cosine in a space of its own and builds the Gaussian mask.

    The mask has projections of its own, so that attention and representation do not compete for one
    table (the finding of DARE, arXiv 2410.02604).
    """

    def __init__(self, dim: int, *, num_anchors: int, sigma: float, recent_window: int) -> None:
        super().__init__()
        self.num_anchors = num_anchors
        self.sigma = sigma
        self.recent_window = recent_window
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.sharpness = nn.Parameter(torch.tensor(4.0))
        self.offset = nn.Parameter(torch.tensor(0.0))
        nn.init.eye_(self.query.weight)  # starts as the cosine of the inherited representations
        nn.init.eye_(self.key.weight)

    def forward(
        self,
        query: Float[Tensor, "Q D"],
        key: Float[Tensor, "K D"],
        first: Int[Tensor, "Q"],
        last: Int[Tensor, "Q"],
        *,
        size: int,
        query_time: Int[Tensor, "Q"] | None,
        key_time: Int[Tensor, "K"] | None,
        query_position: Int[Tensor, "Q"] | None,
    ) -> PreferenceMask:
        """Build the mask of each query over its visible keys.

        Args:
            query: fused representations of the queries, [Q, D].
            key: fused representations of the history items, [K, D].
            first: as in `build_tiles`, like all that follow.
            last: one past the last visible key.
            size: tile side.
            query_time: seconds.
            key_time: seconds.
            query_position: row of each query among the keys.
        """
        query_signal, key_signal = self.query(query), self.key(key)
        # Selection is not smooth: cosines rounded to bfloat16 would tie and select other anchors.
        with autocast_off(query):
            query_signal = functional.normalize(wide(query_signal), dim=-1)
            key_signal = functional.normalize(wide(key_signal), dim=-1)
            anchor = select_anchors(
                query_signal.detach(), key_signal.detach(), first, last, self.num_anchors
            )
            chosen = key_signal[anchor.clamp_min(0)]
            cosine = torch.einsum("qr,qar->qa", query_signal, chosen)
            peak = torch.sigmoid(self.sharpness * cosine + self.offset) * (anchor >= 0)

        reach = int(REACH * self.sigma)
        grid = _touched(anchor, first, last, len(key), size, reach, self.recent_window)
        pairs = grid.nonzero()
        tiles = build_tiles(
            first,
            last,
            len(key),
            size=size,
            query_time=query_time,
            key_time=key_time,
            query_position=query_position,
            pairs=(pairs[:, 0], pairs[:, 1]),
        )
        weight = self._bells(anchor, peak, grid, first, last, reach, size)
        key_row = tiles.key_block[:, None, None] * size + torch.arange(size, device=first.device)
        recent = blocks(last - self.recent_window, size)[tiles.query_block][:, :, None]
        return PreferenceMask(anchor, peak, tiles, weight.masked_fill(key_row >= recent, 1.0))

    def _bells(
        self,
        anchor: Tensor,
        peak: Tensor,
        grid: Tensor,
        first: Tensor,
        last: Tensor,
        reach: int,
        size: int,
    ) -> Tensor:
        """Weights [N, S, S] under the peaks: the highest peak wins where bells overlap."""
        step = torch.arange(-reach, reach + 1, device=anchor.device)
        bell = torch.exp(-(step.to(peak.dtype) ** 2) / (2 * self.sigma**2))
        column = anchor[:, :, None] + step
        row = torch.arange(len(anchor), device=anchor.device)
        seen = (column >= first[:, None, None]) & (column < last[:, None, None])
        # A hidden entry adds zero at the anchor itself: no compaction, no dynamic shapes.
        column = torch.where(seen, column, anchor.clamp_min(0)[:, :, None])
        height = peak[:, :, None] * (bell * seen)
        tile = (grid.flatten().cumsum(0) - 1).view(grid.shape)[
            (row // size)[:, None, None], torch.div(column, size, rounding_mode="trunc")
        ]
        inside = (row % size)[:, None, None] * size + column % size
        # A query without anchors points at key 0, which its tiles need not cover.
        place = (tile * size * size + inside).clamp_min_(0)
        flat = height.new_zeros(int(grid.sum()) * size * size)
        flat = flat.scatter_reduce(0, place.flatten(), height.flatten(), "amax")
        return flat.view(-1, size, size)


def _touched(
    anchor: Tensor, first: Tensor, last: Tensor, num_keys: int, size: int, reach: int, window: int
) -> Tensor:
    """Tiles with some weight above zero, bool [query blocks, key blocks]."""
    query_block = torch.arange(len(anchor), device=anchor.device)[:, None] // size
    grid = torch.zeros(
        -(-len(anchor) // size), -(-num_keys // size), dtype=torch.bool, device=anchor.device
    )
    low = torch.maximum(anchor - reach, first[:, None])
    high = torch.minimum(anchor + reach, last[:, None] - 1)
    # A bell may span many tiles only if its reach exceeds a tile; step through it tile by tile.
    for step in range(0, 2 * reach + size, size):
        column = torch.minimum(low + step, high)
        column = torch.where(anchor >= 0, column, (last[:, None] - 1).clamp_min(0))
        grid[query_block, column // size] = True
    rows, columns = cover(torch.maximum(first, last - window), last, num_keys, size)
    grid[rows, columns] = True
    return grid
