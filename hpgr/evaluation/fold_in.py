"""Linear-Gaussian fold-in: the probability of a like from the user's taste before the candidate.

    value = bias of the item + factor of the item . taste of the user + noise
    taste ~ N(sum of the hints of the n items met / sqrt(n), I)

Factors, hints, biases and noise are fitted to training events (`hpgr.training.item_factors`). The
taste is the posterior given the user's events before the candidate's second, all of them, an event
of age n counting decay^n. The chance that the value is high enough is logistic in the predicted
value over its standard deviation. Reads the arrays of `hpgr.data.log`. Writes nothing.

Shapes: Q queries, C candidates, V items, A actions, d width of the factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.special import expit

from hpgr.data.log import EventLog
from hpgr.evaluation.protocols import LabelledQueries


@dataclass(frozen=True)
class Factors:
    """The model of values: `factor` [V, d], `bias` [V], `hint` [V, d], variance of the noise.

    `value` [A] is each action's, about mean 0 and variance 1; `valued` [A] is 0 where it has none.
    """

    factor: np.ndarray
    bias: np.ndarray
    hint: np.ndarray
    value: np.ndarray
    valued: np.ndarray
    noise: float

    @classmethod
    def fit(cls, log: EventLog, dim: int, *, seed: int) -> Factors:
        """Fit the training events of `log`; `dim` is d."""
        from hpgr.training.item_factors import fit_item_factors  # torch: the command line is light

        found = fit_item_factors(log, dim, seed=seed)
        tables = (found.factor, found.bias, found.hint, found.value, found.valued)
        factor, bias, hint, value, valued = (table.double().numpy() for table in tables)
        return cls(factor, bias, hint, value, valued, found.noise)

    def residual(self, log: EventLog, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Value less the item's bias, 0 where there is none, and 1 where there is one."""
        action = log.action[rows]
        valued = self.valued[action]
        return (self.value[action] - self.bias[log.item[rows]]) * valued, valued


@dataclass(frozen=True)
class Belief:
    """Belief about the candidates of one user, `queries`, each before its second.

    `taste` [Q, d] is the posterior mean, `mean` and `variance` [C] those of factor . taste.
    """

    queries: LabelledQueries
    taste: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True)
class FoldIn:
    """A fitted fold-in; `slope` and `intercept` turn standardised predictions into log odds."""

    factors: Factors
    decay: float
    slope: float = 1.0
    intercept: float = 0.0

    def beliefs(self, log: EventLog, queries: LabelledQueries) -> Iterator[Belief]:
        """Beliefs user by user."""
        for part in by_user(queries):
            yield self._belief(log, part)

    def standardised(self, log: EventLog, queries: LabelledQueries) -> np.ndarray:
        """Predicted value over its standard deviation, float64 [C]."""
        none = np.empty((2, 0))
        known = [np.stack([b.mean, b.variance]) for b in self.beliefs(log, queries)]
        mean, variance = np.concatenate([none, *known], axis=1)
        predicted = self.factors.bias[queries.item] + mean
        return predicted / np.sqrt(variance + self.factors.noise)

    def probability(self, log: EventLog, queries: LabelledQueries) -> np.ndarray:
        """Probability that each candidate is liked, float64 [C]."""
        return expit(self.intercept + self.slope * self.standardised(log, queries))

    def calibrated(self, log: EventLog, queries: LabelledQueries) -> FoldIn:
        """With slope and intercept fitted to the labels of `queries`."""
        from sklearn.linear_model import LogisticRegression  # a second to import

        found = LogisticRegression(C=1e6).fit(
            self.standardised(log, queries)[:, None], queries.label
        )
        return replace(self, slope=found.coef_.item(), intercept=found.intercept_.item())

    def _belief(self, log: EventLog, queries: LabelledQueries) -> Belief:
        factors, dim = self.factors, self.factors.factor.shape[1]
        start = int(log.user_offsets[queries.user[0]])
        rows = slice(start, int(queries.end.max()))
        factor = factors.factor[log.item[rows]]
        residual, valued = factors.residual(log, rows)
        row, column = np.triu_indices(dim)
        pairs = factor[:, row] * factor[:, column] * valued[:, None]
        summed = discounted_sums(np.hstack([pairs, factor * residual[:, None]]), self.decay)
        summed = summed[queries.end - start] / factors.noise
        precision = np.empty((len(queries), dim, dim))
        precision[:, row, column] = precision[:, column, row] = summed[:, : len(row)]
        covariance = np.linalg.inv(precision + np.eye(dim))
        hints = np.hstack([factors.hint[log.item[rows]], np.ones((len(factor), 1))])
        met = discounted_sums(hints * valued[:, None], 1.0)[queries.end - start]
        expected = met[:, :-1] / np.sqrt(np.maximum(1, met[:, -1:]))
        taste = np.einsum("qij,qj->qi", covariance, summed[:, len(row) :] + expected)
        query = np.repeat(np.arange(len(queries)), np.diff(queries.offsets))
        asked = factors.factor[queries.item]
        mean = np.einsum("ci,ci->c", asked, taste[query])
        variance = np.einsum("ci,cij,cj->c", asked, covariance[query], asked)
        return Belief(queries, taste, mean, variance)


def by_user(queries: LabelledQueries) -> Iterator[LabelledQueries]:
    """The queries of one user after the other."""
    bounds = np.flatnonzero(np.diff(queries.user, prepend=-1, append=-1))
    for first, end in pairwise(bounds.tolist()):
        yield queries.take(slice(first, end))


def discounted_sums(rows: np.ndarray, decay: float) -> np.ndarray:
    """Sums of the first n of `rows` [N, F] for n from 0, float64 [N + 1, F].

    A row k places before the last of them counts decay^k.
    """
    none = np.zeros((1, rows.shape[1]))
    if not len(rows):
        return none
    from scipy.signal import lfilter  # half a second to import

    return np.concatenate([none, lfilter([1.0], [1.0, -decay], rows, axis=0)])
