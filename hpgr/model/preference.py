"""Preference-guided sparse attention: a query attends to its anchors among past items.

1. Preference signals: the A visible history items most similar (cosine) to the query are its
   anchors; the similarity of each passes a sigmoid and becomes the height of its peak, so that
   selection receives a gradient.
2. Gaussian mask: weight_ij = max over anchors a of peak_a * exp(-(j - a)^2 / (2 sigma^2)), zero
   beyond 3 sigma, one in the window of the most recent positions. It multiplies the attention
   weight after the SiLU.
3. Sparse: only blocks of keys in which a query has a weight above zero are computed for it. In
   short histories that is nearly every block, and every causal tile is computed instead.

Published: top-K signals and a multi-peak Gaussian mask (arXiv 2603.00980). Ours: cosine with its
own projection, the sigmoid, the maximum over peaks, the cut at 3 sigma, the recent window.

Shape legend (suffixes of names): Q queries, K keys, D width, A anchors, R width of the signal
space, N tiles, G queries and S keys of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.model.attention.bells import bell_weights, find_bells
from hpgr.model.attention.cover import Tiles, build_tiles
from hpgr.model.attention.key_tiles import SIZE, KeyTiles, build_key_tiles
from hpgr.model.attention.select import select
from hpgr.model.precision import autocast_off, wide
from hpgr.model.shapes import Float, Int


@dataclass(frozen=True)
class PreferenceMask:
    """The mask of one set of queries.

    `anchor` int64 [Q, A] is the key row of each anchor, -1 where fewer items are visible; `peak`
    [Q, A] its height; `tiles` the pairs that are computed; `weight` [N, G, S] their weights.
    """

    anchor: Tensor
    peak: Tensor
    tiles: Tiles | KeyTiles
    weight: Tensor


def gaussian_mask(
    anchor_QA: Int[Tensor, "Q A"],
    peak_QA: Float[Tensor, "Q A"],
    first: Int[Tensor, "Q"],
    end: Int[Tensor, "Q"],
    num_keys: int,
    *,
    sigma: float,
    window: int,
    tile: int,
    sparse: bool,
    query_time: Int[Tensor, "Q"] | None,
    key_time: Int[Tensor, "K"] | None,
    query_position: Int[Tensor, "Q"] | None,
) -> PreferenceMask:
    """Build the mask of bells around anchors.

    Args:
        anchor_QA: key rows, -1 for none.
        peak_QA: heights of their bells, 0 to 1.
        first: as in `build_tiles`, like all that is not explained here.
        end: one past the last visible key.
        num_keys: K.
        sigma: standard deviation of a bell, positions.
        window: newest visible keys of weight one; 0 for none.
        tile: side of a square tile, where every visible tile is computed.
        sparse: compute only the blocks of keys that the mask of a query touches.
        query_time: seconds.
        key_time: seconds.
        query_position: row of each query among the keys.
    """
    size = SIZE if sparse else tile
    bells = find_bells(anchor_QA, first, end, size=size, sigma=sigma, window=window)
    tiles: Tiles | KeyTiles
    if sparse:
        tiles, row_P = build_key_tiles(
            bells.query, bells.block, first, end, num_keys,
            query_time=query_time, key_time=key_time, query_position=query_position,
        )  # fmt: skip
    else:
        tiles = build_tiles(
            first, end, num_keys, size=size, segments=False,
            query_time=query_time, key_time=key_time, query_position=query_position,
        )  # fmt: skip
        width = -(-num_keys // size)
        tile_P = torch.searchsorted(
            tiles.query_block * width + tiles.key_block, bells.query // size * width + bells.block
        )
        row_P = tile_P * size + bells.query % size
    count, height = tiles.bucket.shape[:2]
    weight_RS = bell_weights(peak_QA, bells, row_P, count * height)
    return PreferenceMask(anchor_QA, peak_QA, tiles, weight_RS.view(count, height, size))


class PreferenceSignals(nn.Module):
    """Selects anchors by cosine in a space of its own and builds the Gaussian mask.

    The mask has projections of its own, so that attention and representation do not compete for one
    table (the finding of DARE, arXiv 2410.02604).
    """

    def __init__(self, dim: int, *, num_anchors: int, sigma: float) -> None:
        super().__init__()
        self.num_anchors = num_anchors
        self.sigma = sigma
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
        window: int,
        tile: int,
        sparse: bool,
        query_time: Int[Tensor, "Q"] | None,
        key_time: Int[Tensor, "K"] | None,
        query_position: Int[Tensor, "Q"] | None,
    ) -> PreferenceMask:
        """Build the mask of each query over its visible keys.

        Args:
            query_QD: fused representations of the queries, [Q, D].
            key_KD: fused representations of the history items, [K, D].
            first: as in `gaussian_mask`, like all that follow.
            end: one past the last visible key.
            window: newest visible keys of weight one.
            tile: side of a square tile.
            sparse: compute only what the mask touches.
            query_time: seconds.
            key_time: seconds.
            query_position: row of each query among the keys.
        """
        query_QR, key_KR = self.query(query_QD), self.key(key_KD)
        # Selection is not smooth: cosines rounded to bfloat16 would tie and select other anchors.
        with autocast_off(query_QD):
            query_QR = functional.normalize(wide(query_QR), dim=-1)
            key_KR = functional.normalize(wide(key_KR), dim=-1)
            anchor_QA, cosine_QA = select(query_QR, key_KR, first, end, self.num_anchors)
            peak_QA = torch.sigmoid(self.sharpness * cosine_QA + self.offset) * (anchor_QA >= 0)
        return gaussian_mask(
            anchor_QA,
            peak_QA,
            first,
            end,
            len(key_KD),
            sigma=self.sigma,
            window=window,
            tile=tile,
            sparse=sparse,
            query_time=query_time,
            key_time=key_time,
            query_position=query_position,
        )
