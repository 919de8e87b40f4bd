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

Shape legend (suffixes of names): Q queries, K keys, q and k those of one chunk, D width, A anchors,
R width of the signal space, N tiles, S tile side, B query blocks, C key blocks, W places under a
peak.
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
    query_QR: Float[Tensor, "Q R"],
    key_KR: Float[Tensor, "K R"],
    first: Int[Tensor, "Q"],
    end: Int[Tensor, "Q"],
    num: int,
) -> Int[Tensor, "Q A"]:
    """Select the `num` visible keys most similar to each query: rows, best first, -1 for none.

    Args:
        query_QR: [Q, R], normalised.
        key_KR: [K, R], normalised.
        first: first visible key of each query, int64 [Q], non-decreasing.
        end: one past the last visible key, int64 [Q].
        num: A.
    """
    anchor_QA = torch.full((len(query_QR), num), -1, dtype=torch.int64, device=query_QR.device)
    step = QUERIES_AT_A_TIME if query_QR.device.type == "cpu" else ACCELERATOR_QUERIES
    for low in range(0, len(query_QR), step):
        part = slice(low, low + step)
        start, stop = int(first[part].min()), int(end[part].max())
        if stop <= start:
            continue
        similarity_qk = query_QR[part] @ key_KR[start:stop].T
        column_k = torch.arange(start, stop, device=query_QR.device)
        hidden_qk = (column_k < first[part, None]) | (column_k >= end[part, None])
        similarity_qk.masked_fill_(hidden_qk, -torch.inf)
        best = similarity_qk.topk(min(num, stop - start), dim=1)
        anchor_QA[part, : best.indices.shape[1]] = torch.where(
            best.values > -torch.inf, best.indices + start, -1
        )
    return anchor_QA


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
        query_QD: Float[Tensor, "Q D"],
        key_KD: Float[Tensor, "K D"],
        first: Int[Tensor, "Q"],
        end: Int[Tensor, "Q"],
        *,
        size: int,
        query_time: Int[Tensor, "Q"] | None,
        key_time: Int[Tensor, "K"] | None,
        query_position: Int[Tensor, "Q"] | None,
    ) -> PreferenceMask:
        """Build the mask of each query over its visible keys.

        Args:
            query_QD: fused representations of the queries, [Q, D].
            key_KD: fused representations of the history items, [K, D].
            first: as in `build_tiles`, like all that follow.
            end: one past the last visible key.
            size: tile side.
            query_time: seconds.
            key_time: seconds.
            query_position: row of each query among the keys.
        """
        query_QR, key_KR = self.query(query_QD), self.key(key_KD)
        # Selection is not smooth: cosines rounded to bfloat16 would tie and select other anchors.
        with autocast_off(query_QD):
            query_QR = functional.normalize(wide(query_QR), dim=-1)
            key_KR = functional.normalize(wide(key_KR), dim=-1)
            anchor_QA = select_anchors(
                query_QR.detach(), key_KR.detach(), first, end, self.num_anchors
            )
            chosen_QAR = key_KR[anchor_QA.clamp_min(0)]
            cosine_QA = torch.einsum("qr,qar->qa", query_QR, chosen_QAR)
            peak_QA = torch.sigmoid(self.sharpness * cosine_QA + self.offset) * (anchor_QA >= 0)

        reach = int(REACH * self.sigma)
        grid_BC = _touched(anchor_QA, first, end, len(key_KD), size, reach, self.recent_window)
        pairs = grid_BC.nonzero()
        tiles = build_tiles(
            first,
            end,
            len(key_KD),
            size=size,
            query_time=query_time,
            key_time=key_time,
            query_position=query_position,
            pairs=(pairs[:, 0], pairs[:, 1]),
        )
        weight_NSS = self._bells(anchor_QA, peak_QA, grid_BC, first, end, reach, size)
        key_row_N1S = tiles.key_block[:, None, None] * size + torch.arange(
            size, device=first.device
        )
        recent_NS1 = blocks(end - self.recent_window, size)[tiles.query_block][:, :, None]
        return PreferenceMask(
            anchor_QA, peak_QA, tiles, weight_NSS.masked_fill(key_row_N1S >= recent_NS1, 1.0)
        )

    def _bells(
        self,
        anchor_QA: Tensor,
        peak_QA: Tensor,
        grid_BC: Tensor,
        first: Tensor,
        end: Tensor,
        reach: int,
        size: int,
    ) -> Tensor:
        """Weights [N, S, S] under the peaks: the highest peak wins where bells overlap."""
        step_W = torch.arange(-reach, reach + 1, device=anchor_QA.device)
        bell_W = torch.exp(-(step_W.to(peak_QA.dtype) ** 2) / (2 * self.sigma**2))
        column_QAW = anchor_QA[:, :, None] + step_W
        row_Q = torch.arange(len(anchor_QA), device=anchor_QA.device)
        seen_QAW = (column_QAW >= first[:, None, None]) & (column_QAW < end[:, None, None])
        # A hidden entry adds zero at the anchor itself: no compaction, no dynamic shapes.
        column_QAW = torch.where(seen_QAW, column_QAW, anchor_QA.clamp_min(0)[:, :, None])
        height_QAW = peak_QA[:, :, None] * (bell_W * seen_QAW)
        tile_QAW = (grid_BC.flatten().cumsum(0) - 1).view(grid_BC.shape)[
            (row_Q // size)[:, None, None], torch.div(column_QAW, size, rounding_mode="trunc")
        ]
        inside_QAW = (row_Q % size)[:, None, None] * size + column_QAW % size
        # A query without anchors points at key 0, which its tiles need not cover.
        place_QAW = (tile_QAW * size * size + inside_QAW).clamp_min_(0)
        flat = height_QAW.new_zeros(int(grid_BC.sum()) * size * size)
        flat = flat.scatter_reduce(0, place_QAW.flatten(), height_QAW.flatten(), "amax")
        return flat.view(-1, size, size)


def _touched(
    anchor_QA: Tensor,
    first: Tensor,
    end: Tensor,
    num_keys: int,
    size: int,
    reach: int,
    window: int,
) -> Tensor:
    """Tiles with some weight above zero, bool [query blocks, key blocks]."""
    query_block_Q1 = torch.arange(len(anchor_QA), device=anchor_QA.device)[:, None] // size
    grid_BC = torch.zeros(
        -(-len(anchor_QA) // size), -(-num_keys // size), dtype=torch.bool, device=anchor_QA.device
    )
    low_QA = torch.maximum(anchor_QA - reach, first[:, None])
    high_QA = torch.minimum(anchor_QA + reach, end[:, None] - 1)
    # A bell may span many tiles only if its reach exceeds a tile; step through it tile by tile.
    for step in range(0, 2 * reach + size, size):
        column_QA = torch.minimum(low_QA + step, high_QA)
        column_QA = torch.where(anchor_QA >= 0, column_QA, (end[:, None] - 1).clamp_min(0))
        grid_BC[query_block_Q1, column_QA // size] = True
    rows, columns = cover(torch.maximum(first, end - window), end, num_keys, size)
    grid_BC[rows, columns] = True
    return grid_BC
