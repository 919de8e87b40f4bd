"""Fold-in: the posterior of a user's taste under a linear-Gaussian model of values.

    value = bias + factor . taste + noise, taste ~ N(hints of the n items met / sqrt(n), I)

An event of age n counts gamma^n; each clock has a gamma of its own. Stage 1 fits the model
(`hpgr.training.item_factors`). The posterior reads only events that the candidate sees and holds no
weight of a user, so it serves users never seen. Ours.

Shape legend (suffixes of names): T history rows, C candidates, P distinct sets of visible rows,
V items, D width of the factors, R clocks, X and Y widths of rows whose products are summed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.model.discounting import Pasts
from hpgr.model.packed import Candidates, Packed
from hpgr.model.precision import autocast_off
from hpgr.model.shapes import Float, Int

CLOCKS = (0.99, 0.9995)  # discounts of an event by one place, to start from
PRIOR_EVENTS = 5.0  # of a user's mean residual
PER_CLOCK = 4  # features of one posterior


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


class Tastes(NamedTuple):
    """Posteriors as candidates see them.

    Attributes:
        features: of each clock mean and variance of the prediction, the mean over its standard
            deviation, and the user's shrunk mean residual; [C] each.
        means: the first of these of each clock.
        slowest: taste [C, D] of the last clock.
        expected: prior mean [P, D] of the tastes.
        pasts: the visible rows, P sets of them.
        of: set of each candidate, int64 [C].
        residual: of each row, [T].
    """

    features: list[Float[Tensor, "C"]]
    means: list[Float[Tensor, "C"]]
    slowest: Float[Tensor, "C D"]
    expected: Float[Tensor, "P D"]
    pasts: Pasts
    of: Int[Tensor, "C"]
    residual: Float[Tensor, "T"]


class FoldedTastes(nn.Module):
    """The model of values, and the posteriors that it gives histories."""

    def __init__(self, num_items: int, num_actions: int, dim: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.empty(num_items, dim).normal_(0, 0.1))
        self.bias = nn.Parameter(torch.zeros(num_items))
        # Set by the log, not learned; parameters, so that a warm start keeps them.
        self.value = nn.Parameter(torch.zeros(num_actions), requires_grad=False)
        self.valued = nn.Parameter(torch.zeros(num_actions), requires_grad=False)
        self.hint = nn.Parameter(torch.zeros(num_items, dim))
        self.log_noise = nn.Parameter(torch.zeros(()))
        self.log_forgetting = nn.Parameter(torch.tensor([math.log(-math.log(g)) for g in CLOCKS]))

    @torch.no_grad()
    def start_from(self, factors: ItemFactors) -> None:
        """Start at a model fitted to the training events."""
        self.factor.copy_(factors.factor)
        self.bias.copy_(factors.bias)
        self.hint.copy_(factors.hint)
        self.value.copy_(factors.value)
        self.valued.copy_(factors.valued)
        self.log_noise.fill_(math.log(factors.noise))

    def folded(self, packed: Packed, candidates: Candidates) -> Tastes:
        """Compute the posteriors, in float32 or wider.

        Args:
            packed: the histories.
            candidates: the visible rows of each.
        """
        with autocast_off(self.factor):
            return self._folded(packed, candidates)

    def _folded(self, packed: Packed, candidates: Candidates) -> Tastes:
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
        expected_PD = self._expected(packed, valued_T, pasts)
        features, means = [], []
        evidence_RPXY = pasts.products(
            *_evidence(factor_TD, residual_T, valued_T), torch.exp(-self.log_forgetting.exp())
        )
        for summed_PXY in evidence_RPXY:
            taste_PD, covariance_PDD, mean_P = _posterior(summed_PXY, noise, expected_PD)
            mean_C = (factor_CD * taste_PD[of_C]).sum(1)
            spread_CD = _times(covariance_PDD.index_select(0, of_C), factor_CD)
            variance_C = (spread_CD * factor_CD).sum(1)
            features += [mean_C, variance_C, mean_C / (variance_C + noise).sqrt(), mean_P[of_C]]
            means.append(mean_C)
        return Tastes(features, means, taste_PD[of_C], expected_PD, pasts, of_C, residual_T)

    def _expected(self, packed: Packed, valued_T: Tensor, pasts: Pasts) -> Float[Tensor, "P D"]:
        """Mean of the prior of tastes: what the items met say, whatever the action."""
        hint = functional.pad(self.hint[packed.item], (0, 1), value=1.0)
        summed = pasts.products(valued_T[:, None], hint, valued_T.new_ones(1))[0, :, 0]
        return summed[:, :-1] / summed[:, -1:].clamp_min(1).sqrt()


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
