"""Preference read-out: what the user said about things like the candidate, against everybody.

The evidence at a history event is its residual: the value of the action less the bias of the item.
Items lie near each other in a space of factors that explain values (`hpgr.training.item_factors`),
so near means liked by the same people; for anchors, sharing categories counts as well: where few
people speak about each of many kinds of items, factors cannot tell the kinds apart. Two readers
turn residuals into a prediction:

- fold-in: posterior mean and variance of the user's taste under the linear-Gaussian model
  value = bias + factor . taste + noise, taste ~ N(hints of the n items met / sqrt(n), I), an event
  of age n counting gamma^n;
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
from hpgr.model.unit import unit

CLOCKS = (0.99, 0.9995)  # discounts of an event by one place, to start from
KERNELS = (8.0, 16.0)  # kappa, to start from
PRIOR_EVENTS = 5.0  # of a user's mean residual
PRIOR_ANCHORS = 2.0  # weight of the prior of a mean over anchors, to start from
# Log odds of fold-in by clock and of the anchors, to start from, where the noise has variance 1. A
# value is high with a normal's probability, near the logistic one of 1.7 times as much: Bowling et
# al., "A logistic approximation to the cumulative normal distribution", 2009.
SLOPES = (1.2, 0.5, 0.3)
PACES = (0.8, 0.97, 1.0)  # discounts of the summaries of actions
ACTION_DIM = 8
CATEGORY_DIM = 32
CATEGORY_WEIGHT = 0.5  # length of the categories beside factors of length one, to start from


class ItemFactors(NamedTuple):
    """The linear-Gaussian model of values: factors [V, D], biases [V], variance of the noise.

    `hint` [V, D] is what meeting an item says of the taste, whatever the action. `value` [actions]
    is that of each action, about mean 0 and variance 1; `valued` [actions] is 1 where it has one,
    else 0.
    """

    factor: Tensor
    bias: Tensor
    hint: Tensor
    value: Tensor
    valued: Tensor
    noise: float


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


class PreferenceReadout(nn.Module):
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
        super().__init__()
        self.factor = nn.Parameter(torch.empty(num_items, dim).normal_(0, 0.1))
        self.bias = nn.Parameter(torch.zeros(num_items))
        # Set by the log, not learned; parameters, so that a warm start keeps them.
        self.value = nn.Parameter(torch.zeros(num_actions), requires_grad=False)
        self.valued = nn.Parameter(torch.zeros(num_actions), requires_grad=False)
        self.action = nn.Parameter(torch.empty(num_actions, ACTION_DIM).normal_(0, 1.0))
        self.hint = nn.Parameter(torch.zeros(num_items, dim))
        self.category, width = None, dim
        if num_categories:
            start = torch.empty(num_categories, CATEGORY_DIM).normal_(0, CATEGORY_DIM**-0.5)
            self.category = nn.Parameter(start)
            width += CATEGORY_DIM
        self.selector = Selector(width, width, width, num_anchors=num_anchors)
        self.log_noise = nn.Parameter(torch.zeros(()))
        self.log_forgetting = nn.Parameter(torch.tensor([math.log(-math.log(g)) for g in CLOCKS]))
        self.log_kappa = nn.Parameter(torch.tensor([math.log(k) for k in KERNELS]))
        self.log_prior = nn.Parameter(torch.full((len(KERNELS),), math.log(PRIOR_ANCHORS)))
        self.slope = nn.Parameter(torch.tensor(SLOPES))
        self.num_features = (
            4 * len(CLOCKS) + 3 * len(KERNELS) + len(PACES) * (ACTION_DIM + 1) + 3 * dim + 5
        )

    @torch.no_grad()
    def start_from(self, factors: ItemFactors) -> None:
        """Start at a model fitted to the training events."""
        self.factor.copy_(factors.factor)
        self.bias.copy_(factors.bias)
        self.hint.copy_(factors.hint)
        self.value.copy_(factors.value)
        self.valued.copy_(factors.valued)
        self.log_noise.fill_(math.log(factors.noise))
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
        factor_TD, factor_CD = self.factor[packed.item], self.factor[candidates.item]
        valued_T = self.valued[packed.action]
        residual_T = (self.value[packed.action] - self.bias[packed.item]) * valued_T
        count_C = candidates.end - candidates.first
        # Candidates with the same visible rows share one posterior; 0 stands for none.
        end_P, of_C = torch.unique_consecutive(
            torch.where(count_C > 0, candidates.end, 0), return_inverse=True
        )
        pasts = Pasts(packed, end_P)
        noise = self.log_noise.exp()
        expected_PD = self._expected_taste(packed, valued_T, pasts)
        features, predictions = [], []
        evidence_RPXY = pasts.products(
            *_evidence(factor_TD, residual_T, valued_T), torch.exp(-self.log_forgetting.exp())
        )
        for summed_PXY in evidence_RPXY:
            taste_PD, covariance_PDD, mean_P = _posterior(summed_PXY, noise, expected_PD)
            mean_C = (factor_CD * taste_PD[of_C]).sum(1)
            spread_CD = _times(covariance_PDD.index_select(0, of_C), factor_CD)
            variance_C = (spread_CD * factor_CD).sum(1)
            features += [mean_C, variance_C, mean_C / (variance_C + noise).sqrt(), mean_P[of_C]]
            predictions.append(mean_C)
        taste_CD = taste_PD[of_C]  # of the slowest clock

        rows_T = functional.pad(residual_T, (0, 1))  # one more, for those who see nothing
        rows_TD = functional.pad(factor_TD, (0, 0, 0, 1))
        there_CA = anchor_CA >= 0
        residual_CA = rows_T[anchor_CA]
        folded_CA = torch.einsum("cad,cd->ca", rows_TD[anchor_CA], taste_CD)
        for kappa, prior in zip(self.log_kappa.exp(), self.log_prior.exp(), strict=True):
            weight_CA = torch.exp(kappa * (cosine_CA - 1)) * there_CA
            total_C = weight_CA.sum(1)
            for left_CA in (residual_CA - mean_P[of_C][:, None], residual_CA - folded_CA):
                features.append((weight_CA * left_CA).sum(1) / (total_C + prior))
            features.append(total_C.log1p())

        newest_C = torch.where(count_C > 0, candidates.end - 1, len(packed.item))
        time_T = functional.pad(packed.time, (0, 1))
        gap_C = torch.where(count_C > 0, candidates.time - time_T[newest_C], 0)
        features += [
            count_C.float().log1p(),
            gap_C.float().log1p(),
            rows_T[newest_C],
            self.bias[candidates.item],
            (factor_CD * expected_PD[of_C]).sum(1),
        ]
        # The first kernel's mean speaks in the logit as well.
        logit_C = torch.stack([*predictions, features[4 * len(CLOCKS)]], 1) @ self.slope
        wide_features = [taste_CD, taste_CD * factor_CD, factor_CD]
        wide_features += self._paces(packed, residual_T, pasts, of_C)
        return Evidence(logit_C, torch.cat([torch.stack(features, 1), *wide_features], 1))

    def _expected_taste(self, packed: Packed, valued_T: Tensor, pasts: Pasts) -> Tensor:
        """Mean [P, D] of the prior of tastes: what the items met say, whatever the action."""
        hint = functional.pad(self.hint[packed.item], (0, 1), value=1.0)
        summed = pasts.products(valued_T[:, None], hint, valued_T.new_ones(1))[0, :, 0]
        return summed[:, :-1] / summed[:, -1:].clamp_min(1).sqrt()

    def _paces(
        self, packed: Packed, residual_T: Tensor, pasts: Pasts, of_C: Tensor
    ) -> list[Tensor]:
        """Discounted means of action vectors and residuals, [C, ACTION_DIM + 1] a pace."""
        ones_T1 = torch.ones_like(residual_T)[:, None]
        rows = torch.cat([self.action[packed.action], residual_T[:, None], ones_T1], 1)
        rate_R = torch.stack([rows.new_full((), pace) for pace in PACES])
        summed = pasts.products(ones_T1, rows, rate_R)[:, :, 0]
        return [(one[:, :-1] / (one[:, -1:] + 1))[of_C] for one in summed]


def _evidence(
    factor_TD: Float[Tensor, "T D"], residual_T: Float[Tensor, "T"], valued_T: Float[Tensor, "T"]
) -> tuple[Float[Tensor, "T X"], Float[Tensor, "T Y"]]:
    """Lay out rows whose products hold, summed up, what `_posterior` needs."""
    valued = torch.cat([factor_TD * valued_T[:, None], residual_T[:, None], valued_T[:, None]], 1)
    return valued, functional.pad(factor_TD, (0, 1), value=1.0)


def _posterior(
    summed_PXY: Float[Tensor, "P X Y"], noise: Tensor, expected_PD: Float[Tensor, "P D"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [P, D] and covariance [P, D, D] of tastes, and shrunk mean residuals [P]."""
    dim = expected_PD.shape[1]
    upper, last = summed_PXY.split([dim, 1], 2)
    square_PDD, weighted_P1D, _ = upper.split([dim, 1, 1], 1)
    total_P, count_P = last[:, dim:, 0].unbind(1)
    precision_PDD = torch.eye(dim, device=summed_PXY.device) + square_PDD / noise
    covariance_PDD = torch.linalg.inv_ex(precision_PDD).inverse
    taste_PD = _times(covariance_PDD, weighted_P1D.squeeze(1) / noise + expected_PD)
    return taste_PD, covariance_PDD, total_P / (count_P + PRIOR_EVENTS)


def _times(matrix_PDD: Float[Tensor, "P D D"], x_PD: Float[Tensor, "P D"]) -> Float[Tensor, "P D"]:
    """Multiply each small matrix by its vector: on a CPU a library's product costs more."""
    return (matrix_PDD * x_PD[:, None]).sum(2)
