"""Preference-guided sparse attention: a query attends to its anchors among past items.

1. Preference signals: the A visible history items most similar (cosine) to what is asked for are
   the query's anchors (`hpgr.model.attention.select`). Items are compared with items, so that
   place, time and session do not decide. An anchor's peak is the lower, the less similar it is than
   the best one: exp(sharpness (cosine - best)), so that selection receives a gradient.
2. Gaussian mask: weight_ij = max over anchors a of peak_a * exp(-(j - a)^2 / (2 sigma^2)), zero
   beyond 3 sigma, one in the window of the most recent positions. It multiplies the attention
   weight after the SiLU.
3. Sparse: only blocks of keys in which a query has a weight above zero are computed for it. In
   short histories that is nearly every block, and every causal tile is computed instead.

Published: top-K signals and a multi-peak Gaussian mask (arXiv 2603.00980). Ours: cosine with its
own projection, the heights, the maximum over peaks, the cut at 3 sigma, the recent window.

Shape legend (suffixes of names): Q queries, K keys, D width, A anchors, R width of the signal
space, N tiles, G queries and S keys of a tile, B places of a bell, C keys of the longest segment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hpgr.model.attention.bells import bell_curve, bell_weights, find_bells
from hpgr.model.attention.cover import Tiles, build_tiles
from hpgr.model.attention.key_tiles import SIZE, KeyTiles, build_key_tiles
from hpgr.model.precision import autocast_off, wide
from hpgr.model.shapes import Float, Int

SHARPNESS = 8.0  # to start from
BELOW_ALL = -2.0  # below every cosine, and finite: its gradient is multiplied by zero


@dataclass(frozen=True)
class PreferenceMask:
    """The mask of one set of queries.

    `anchor` int64 [Q, A] is the key row of each anchor, -1 where fewer items are visible; `peak`
    [Q, A] its height; `tiles` the pairs that are computed; `weight` [N, G, S] their weights;
    `cosine` [Q, A] the similarity of each anchor, where the heights come from similarities.
    """

    anchor: Tensor
    peak: Tensor
    tiles: Tiles | KeyTiles
    weight: Tensor
    cosine: Tensor | None = None


def gaussian_mask(
    anchor_QA: Int[Tensor, "Q A"],
    peak_QA: Float[Tensor, "Q A"],
    first: Int[Tensor, "Q"],
    end: Int[Tensor, "Q"],
    num_keys: int,
    *,
    sigma: float,
    window: int,
    tiles: Tiles | None,
    query_time: Int[Tensor, "Q"] | None,
    key_time: Int[Tensor, "K"] | None,
    query_position: Int[Tensor, "Q"] | None,
    whole: Tiles | None = None,
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
        tiles: of every visible pair, with their times; None computes only the blocks of keys that
            the mask of a query touches.
        query_time: seconds.
        key_time: seconds.
        query_position: row of each query among the keys.
        whole: tiles of segments that cover these queries, where there are; all is computed then.
    """
    if whole is not None and whole.rows is not None:
        weight_QC = _segment_weights(anchor_QA, peak_QA, whole, sigma=sigma, window=window)
        return PreferenceMask(anchor_QA, peak_QA, whole, whole.padded(weight_QC))
    if tiles is not None and tiles.rows is not None:  # weights lie in square tiles
        tiles = build_tiles(
            first, end, num_keys, size=tiles.size, segments=False,
            query_time=query_time, key_time=key_time, query_position=query_position,
        )  # fmt: skip
    size = SIZE if tiles is None else tiles.size
    bells = find_bells(anchor_QA, first, end, size=size, sigma=sigma, window=window)
    computed: Tiles | KeyTiles
    if tiles is None:
        query_P, block_P, pair_X = bells.pairs(len(first))
        computed, row_P = build_key_tiles(
            query_P, block_P, first, end, num_keys,
            query_time=query_time, key_time=key_time, query_position=query_position,
        )  # fmt: skip
        row_X = row_P[pair_X]
    else:
        computed, row_X = tiles, tiles.row_of(bells.query, bells.block)
    count, height = computed.bucket.shape[:2]
    weight_RS = bell_weights(peak_QA, bells, row_X, count * height)
    return PreferenceMask(anchor_QA, peak_QA, computed, weight_RS.view(count, height, size))


def _segment_weights(
    anchor_QA: Int[Tensor, "Q A"],
    peak_QA: Float[Tensor, "Q A"],
    tiles: Tiles,
    *,
    sigma: float,
    window: int,
) -> Float[Tensor, "Q C"]:
    """Compute the weights of each query over the keys from its first on; C as tiles have them."""
    curve_B, width = bell_curve(sigma, peak_QA.device).to(peak_QA.dtype), tiles.bucket.shape[2]
    reach = len(curve_B) // 2
    # No anchor: a peak of height zero at any place. Bells may reach over both ends.
    inside_QA = (anchor_QA - tiles.first[:, None]).clamp_min(0)
    index_QAB = inside_QA[:, :, None] + torch.arange(len(curve_B), device=peak_QA.device)
    bell_QAB = peak_QA[:, :, None] * curve_B
    weight_QC = peak_QA.new_zeros(len(peak_QA), width + 2 * reach).scatter_reduce(
        1, index_QAB.flatten(1), bell_QAB.flatten(1), "amax"
    )[:, reach : reach + width]
    if window:
        column_C = torch.arange(width, device=peak_QA.device)
        recent_QC = column_C >= (tiles.visible - min(window, 1 << 32))[:, None]
        weight_QC = weight_QC.masked_fill(recent_QC, 1.0)
    return weight_QC


class PreferenceSignals(nn.Module):
    """Turns anchors and their similarities into a mask of bells.

    The best anchor's bell has height one. Attention is normalised after the sum, so only ratios of
    heights count: a height that saturates with the cosine would make all anchors alike.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(SHARPNESS)))

    def forward(
        self,
        anchor_QA: Int[Tensor, "Q A"],
        cosine_QA: Float[Tensor, "Q A"],
        first: Int[Tensor, "Q"],
        end: Int[Tensor, "Q"],
        num_keys: int,
        **options: Any,
    ) -> PreferenceMask:
        """Build the mask of each query over its visible keys; see `gaussian_mask`."""
        with autocast_off(cosine_QA):
            there_QA = anchor_QA >= 0
            known_QA = wide(cosine_QA).masked_fill(~there_QA, BELOW_ALL)
            distance_QA = known_QA - known_QA.amax(1, keepdim=True)
            peak_QA = torch.exp(self.log_sharpness.exp() * distance_QA) * there_QA
        mask = gaussian_mask(anchor_QA, peak_QA, first, end, num_keys, sigma=self.sigma, **options)
        return replace(mask, cosine=cosine_QA)
