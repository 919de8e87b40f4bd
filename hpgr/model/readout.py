"""Preference read-out: what the user said about things like the candidate, against everybody.

The evidence at a history event is its residual: the value of the action less the bias of the item.
Items lie near each other in a space of factors that explain values (`hpgr.training.item_factors`),
so near means liked by the same people; for anchors, sharing categories counts as well: where few
people speak about each of many kinds of items, factors cannot tell the kinds apart. Two readers
turn residuals into a prediction:

- fold-in: posterior mean and variance of the user's taste (`hpgr.model.tastes`);
- anchors: the mean residual over the candidate's anchors, weighted by exp(kappa (cosine - 1)) and
  shrunk by a prior weight, with the user's mean taken off and with the fold-in taken off.

Both read only events that the candidate sees and hold no weight of a user, so they serve users
never seen. Published is the idea of picking similar items (arXiv 2603.00980); the readers are ours.

Shape legend (suffixes of names): T history rows, C candidates, P distinct sets of visible rows,
V items, A anchors, D width of the factors, F features, G categories, K width of their vectors, W of
the space of anchors, R discounts, X and Y widths of rows whose products are summed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.model.attention.cover import Tiles
from hpgr.model.attention.select import Selector
from hpgr.model.discounting import Pasts
from hpgr.model.interface import Growth
from hpgr.model.packed import Candidates, Packed
from hpgr.model.precision import autocast_off, wide
from hpgr.model.shapes import Float, Int
from hpgr.model.tastes import CLOCKS, PER_CLOCK, FoldedTastes, ItemFactors
from hpgr.model.unit import unit

KERNELS = (8.0, 16.0)  # kappa, to start from
PRIOR_ANCHORS = 2.0  # weight of the prior of a mean over anchors, to start from
# Log odds of fold-in by clock and of the anchors, to start from, where the noise has variance 1. A
# value is high with a normal's probability, near the logistic one of 1.7 times as much: Bowling et
# al., "A logistic approximation to the cumulative normal distribution", 2009.
SLOPES = (1.2, 0.5, 0.3)
PACES = (0.8, 0.97, 1.0)  # discounts of the summaries of actions
ACTION_DIM = 8
CATEGORY_DIM = 32
CATEGORY_WEIGHT = 0.5  # length of the categories beside factors of length one, to start from


READOUT_GROWTH = {
    "click.readout.factor": Growth("num_items"),
    "click.readout.bias": Growth("num_items"),
    "click.readout.hint": Growth("num_items"),
    "click.readout.value": Growth("num_actions"),
    "click.readout.valued": Growth("num_actions"),
    "click.readout.action": Growth("num_actions"),
    "click.readout.category": Growth("num_categories"),
}


class Evidence(NamedTuple):
    """A logit [C] from the evidence alone and features [C, F] for the ranking head."""

    logit: Float[Tensor, "C"]
    features: Float[Tensor, "C F"]


class PreferenceReadout(FoldedTastes):
    """Reads how the user valued things like the candidate."""

    def __init__(
        self,
        num_items: int,
        num_actions: int,
        dim: int,
        *,
        num_anchors: int,
        num_categories: int = 0,
    ) -> None:
        """With `num_categories` the anchors of `select` need a caller who knows the items'."""
        super().__init__(num_items, num_actions, dim)
        self.action = nn.Parameter(torch.empty(num_actions, ACTION_DIM).normal_(0, 1.0))
        self.category, width = None, dim
        if num_categories:
            start = torch.empty(num_categories, CATEGORY_DIM).normal_(0, CATEGORY_DIM**-0.5)
            self.category = nn.Parameter(start)
            width += CATEGORY_DIM
        self.selector = Selector(width, width, width, num_anchors=num_anchors)
        self.log_kappa = nn.Parameter(torch.tensor([math.log(k) for k in KERNELS]))
        self.log_prior = nn.Parameter(torch.full((len(KERNELS),), math.log(PRIOR_ANCHORS)))
        self.slope = nn.Parameter(torch.tensor(SLOPES))
        self.num_features = (
            PER_CLOCK * len(CLOCKS) + 3 * len(KERNELS) + len(PACES) * (ACTION_DIM + 1) + 3 * dim + 5
        )

    @torch.no_grad()
    def start_from(self, factors: ItemFactors) -> None:
        """Start at a model fitted to the training events."""
        super().start_from(factors)
        self.slope.copy_(torch.tensor(SLOPES) / math.sqrt(factors.noise))

    def log_odds(self, value: Tensor) -> Tensor:
        """Log odds that fold-in by all clocks gives to a predicted value, any shape."""
        return value * self.slope[: len(CLOCKS)].sum()

    def space(self, categories_VK: Float[Tensor, "V K"] | None = None) -> Float[Tensor, "V W"]:
        """Compute the vectors by which `select` compares items.

        Args:
            categories_VK: mean row in `category` of each item's categories, for a read-out that
                has categories.
        """
        if categories_VK is None:
            return self.factor
        parts = [unit(x) for x in (self.factor, categories_VK)]
        return torch.cat([parts[0], CATEGORY_WEIGHT * parts[1]], -1)

    def select(
        self,
        packed: Packed,
        candidates: Candidates,
        space_VW: Float[Tensor, "V W"] | None = None,
        tiles: Tiles | None = None,
    ) -> tuple[Int[Tensor, "C A"], Float[Tensor, "C A"]]:
        """Select the visible events whose items are nearest; see `Selector`.

        Args:
            packed: the histories.
            candidates: the visible rows of each.
            space_VW: what `space` gave; None: the factors.
            tiles: of the candidates, as `Selector` takes them.
        """
        space_VW = self.factor if space_VW is None else space_VW
        return self.selector(
            space_VW.index_select(0, candidates.item),
            space_VW.index_select(0, packed.item),
            candidates.first,
            candidates.end,
            packed.position,
            tiles,
        )

    def forward(
        self, packed: Packed, candidates: Candidates, anchor_CA: Tensor, cosine_CA: Tensor
    ) -> Evidence:
        """Read the evidence for each candidate.

        Args:
            packed: the histories.
            candidates: the visible rows of each.
            anchor_CA: rows of the anchors, int64, -1 for none.
            cosine_CA: their similarities.
        """
        with autocast_off(self.factor):
            return self._read(packed, candidates, anchor_CA, wide(cosine_CA))

    def _read(
        self, packed: Packed, candidates: Candidates, anchor_CA: Tensor, cosine_CA: Tensor
    ) -> Evidence:
        tastes = self.folded(packed, candidates)
        features, taste_CD, residual_T = [*tastes.features], tastes.slowest, tastes.residual
        factor_TD, factor_CD = self.factor[packed.item], self.factor[candidates.item]
        mean_C = tastes.features[-1]

        rows_T = functional.pad(residual_T, (0, 1))  # one more, for those who see nothing
        rows_TD = functional.pad(factor_TD, (0, 0, 0, 1))
        there_CA = anchor_CA >= 0
        residual_CA = rows_T[anchor_CA]
        folded_CA = torch.einsum("cad,cd->ca", rows_TD[anchor_CA], taste_CD)
        for kappa, prior in zip(self.log_kappa.exp(), self.log_prior.exp(), strict=True):
            weight_CA = torch.exp(kappa * (cosine_CA - 1)) * there_CA
            total_C = weight_CA.sum(1)
            for left_CA in (residual_CA - mean_C[:, None], residual_CA - folded_CA):
                features.append((weight_CA * left_CA).sum(1) / (total_C + prior))
            features.append(total_C.log1p())

        count_C = candidates.end - candidates.first
        newest_C = torch.where(count_C > 0, candidates.end - 1, len(packed.item))
        time_T = functional.pad(packed.time, (0, 1))
        gap_C = torch.where(count_C > 0, candidates.time - time_T[newest_C], 0)
        features += [
            count_C.float().log1p(),
            gap_C.float().log1p(),
            rows_T[newest_C],
            self.bias[candidates.item],
            (factor_CD * tastes.expected[tastes.of]).sum(1),
        ]
        # The first kernel's mean speaks in the logit as well.
        logit_C = torch.stack([*tastes.means, features[PER_CLOCK * len(CLOCKS)]], 1) @ self.slope
        wide_features = [taste_CD, taste_CD * factor_CD, factor_CD]
        wide_features += self._paces(packed, residual_T, tastes.pasts, tastes.of)
        return Evidence(logit_C, torch.cat([torch.stack(features, 1), *wide_features], 1))

    def _paces(
        self, packed: Packed, residual_T: Tensor, pasts: Pasts, of_C: Tensor
    ) -> list[Tensor]:
        """Discounted means of action vectors and residuals, [C, ACTION_DIM + 1] a pace."""
        ones_T1 = torch.ones_like(residual_T)[:, None]
        rows = torch.cat([self.action[packed.action], residual_T[:, None], ones_T1], 1)
        rate_R = torch.stack([rows.new_full((), pace) for pace in PACES])
        summed = pasts.products(ones_T1, rows, rate_R)[:, :, 0]
        return [(one[:, :-1] / (one[:, -1:] + 1))[of_C] for one in summed]
