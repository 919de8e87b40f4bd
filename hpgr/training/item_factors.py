"""Item factors that explain the values of actions: what stage 1 learns of preference.

    value = bias of the item + factor of the item . taste of the user + noise
    taste ~ N(sum of the hints of the user's n items / sqrt(n), I)

Variational Bayes: posteriors of tastes, and of factors and biases, each given the other (Lim and
Teh, "Variational Bayesian approach to movie rating prediction", 2007). The prior of factors and
biases is fitted too, by its evidence (MacKay, "Bayesian interpolation", 1992): a factor that says
no more than chance gets the same value for every item, so a log has as many as it can tell.
Hints say what it means to meet an item, whatever the action, as the implicit feedback of
SVD++ (Koren, 2008); they are a ridge regression of the tastes on the items. Items are near each
other where the same people like them, not where they are watched together. Training events only.
Reads the arrays of `hpgr.data.log`. Writes nothing.

Shapes: E events, U users, V items, d width of the factors, S entries of a symmetric matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hpgr.data.log import TRAIN, EventLog
from hpgr.model.tastes import ItemFactors

# To start from; variances are relative to that of the values.
FIRST_FACTOR = 0.4  # prior mean of the first factor: people differ in how much they like anything
FACTOR_PRECISION = 125.0  # of the prior of a factor
BIAS_PRECISION = 3.75
NOISE = 0.6
MOST_PRECISION = 1e6  # of a factor that says nothing
ROUNDS = 16
HINT_ROUNDS = range(3, ROUNDS, 3)  # after which the hints are fitted anew
HINT_DIRECTIONS = 128  # of the ridge regression
HINT_PENALTY = 10.0  # of the ridge regression
USERS_AT_A_TIME = 1 << 14


def fit_item_factors(
    log: EventLog, dim: int, *, seed: int, start: Tensor | None = None
) -> ItemFactors:
    """Fit factors to the training events that have a value.

    Args:
        log: the sessionized log.
        dim: d.
        seed: of the start.
        start: factors of a model trained before, [at most V, d]: a fit from nothing would be
            rotated against them.
    """
    raw = torch.from_numpy(np.array(log.action_value, dtype=np.float64))
    train = torch.from_numpy(np.asarray(log.split) == TRAIN)
    action = torch.from_numpy(np.asarray(log.action).astype(np.int64))
    kept = train & raw.isfinite()[action]
    user = torch.from_numpy(log.user_of_event())[kept]
    item = torch.from_numpy(np.asarray(log.item).astype(np.int64))[kept]
    values = raw[action[kept]]
    mean, deviation = 0.0, 1.0
    if len(values):
        mean, deviation = float(values.mean()), float(values.std(correction=0)) or 1.0
    values = (values - mean) / deviation

    generator = torch.Generator().manual_seed(seed)
    prior = _Prior.start(dim)
    shape = (log.meta.num_items, dim)
    factor = 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64) + prior.mean[:dim]
    if start is not None:
        factor[: len(start)] = start.double()
    items = _Items.start(factor)
    met = torch.bincount(item, minlength=log.meta.num_items) > 0
    hint = torch.zeros_like(factor)
    ridge = _Ridge(user, item, log.meta.num_items, seed=seed) if len(values) else None
    expected = factor.new_zeros(len(user.unique_consecutive()), dim)
    for number in range(ROUNDS if len(values) else 0):
        items, tastes = _round(user, item, values, items, expected, prior)
        prior = prior.fitted(items.mean[met], items.covariance[met])
        if number in HINT_ROUNDS and ridge is not None:
            hint, expected = ridge(tastes)
    value = ((raw - mean) / deviation).nan_to_num(0.0)
    valued = raw.isfinite().float()
    factor, bias = items.mean.float().split([dim, 1], 1)
    return ItemFactors(factor, bias.squeeze(1), hint.float(), value.float(), valued, items.noise)


class _Prior(NamedTuple):
    """Normal prior of an item's factors and bias: `mean` and `precision`, [d + 1]."""

    mean: Tensor
    precision: Tensor

    @classmethod
    def start(cls, dim: int) -> _Prior:
        mean = torch.zeros(dim + 1, dtype=torch.float64)
        mean[0] = FIRST_FACTOR
        precision = torch.full_like(mean, FACTOR_PRECISION)
        precision[-1] = BIAS_PRECISION
        return cls(mean, precision)

    def fitted(self, mean: Tensor, covariance: Tensor) -> _Prior:
        """Step towards the prior under which the posteriors' evidence is greatest.

        Both steps end where those of expectation maximisation do, and get there sooner: what the
        data say of an item counts, from 0 (nothing, the posterior is the prior) to 1.

        Args:
            mean: of the posteriors of the items that have values, [V, d + 1].
            covariance: [V, d + 1, d + 1].
        """
        said = (1 - self.precision * covariance.diagonal(dim1=1, dim2=2)).sum(0).clamp_min(1.0)
        centre = self.mean + (mean - self.mean).sum(0) / said
        precision = said / (mean - centre).square().sum(0).clamp_min(1e-9)
        return _Prior(centre, precision.clamp_max(MOST_PRECISION))


class _Items(NamedTuple):
    """Posterior of the items and the variance of the noise.

    `mean` [V, d + 1] holds factors and, last, biases; `covariance` [V, d + 1, d + 1] is theirs.
    """

    mean: Tensor
    covariance: Tensor
    noise: float

    @classmethod
    def start(cls, factor: Tensor) -> _Items:
        """Start at known factors [V, d]."""
        mean = functional.pad(factor, (0, 1))
        return cls(mean, mean.new_zeros(*mean.shape, mean.shape[1]), NOISE)


class _Ridge:
    """Ridge regression of users' tastes on the items that they met, in the leading directions.

    A user's row of n items has entries 1 / sqrt(n). The penalty leaves next to nothing of the
    other directions.
    """

    def __init__(self, user: Tensor, item: Tensor, num_items: int, *, seed: int) -> None:
        _, row, count = user.unique_consecutive(return_inverse=True, return_counts=True)
        shape = (len(count), num_items)
        entries = count[row].double().rsqrt()
        with torch.sparse.check_sparse_tensor_invariants():
            bag = torch.sparse_coo_tensor(torch.stack([row, item]), entries, shape)
            self.bag = bag.coalesce()
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
            torch.manual_seed(seed)
            size = min(HINT_DIRECTIONS, *shape)
            self.left, self.scale, self.right = torch.svd_lowrank(self.bag, q=size, niter=2)

    def __call__(self, tastes: Tensor) -> tuple[Tensor, Tensor]:
        """Return hints [V, d] that minimise |bag @ hints - tastes|^2 + penalty |hints|^2, and fits.

        Args:
            tastes: [U, d].
        """
        shrunk = self.scale / (self.scale.square() + HINT_PENALTY)
        hint = self.right @ (shrunk[:, None] * (self.left.T @ tastes))
        return hint, self.bag @ hint


def _round(
    user: Tensor, item: Tensor, values: Tensor, items: _Items, expected: Tensor, prior: _Prior
) -> tuple[_Items, Tensor]:
    """One round: posteriors of the users, then of the items and the noise given them.

    The second result are the users' mean tastes [U, d]; `expected` are those of their prior.
    """
    num_items, size = items.mean.shape
    upper = torch.triu_indices(size, size)
    moments = items.mean.new_zeros(num_items, upper.shape[1])  # sums of E[t t'], t = (taste, 1)
    products = torch.zeros_like(items.mean)  # sums of value * E[t]
    tastes = torch.empty_like(expected)
    for events, row, users in _blocks(user):
        seen, value = item[events], values[events]
        mean, covariance = _posterior(row, seen, value, items, expected[users])
        tastes[users] = mean
        second = functional.pad(covariance, (0, 1, 0, 1))
        mean = functional.pad(mean, (0, 1), value=1.0)
        second += mean[:, :, None] * mean[:, None, :]
        order = seen.argsort(stable=True)
        by_item = (seen[order], row[order], num_items)
        moments += _sums(*by_item, torch.ones_like(value), second[:, upper[0], upper[1]])
        products += _sums(*by_item, value[order], mean)
    sums = _symmetric(moments, upper)
    covariance = torch.linalg.inv(sums / items.noise + prior.precision.diag())
    right = products / items.noise + prior.precision * prior.mean
    solved = torch.einsum("vij,vj->vi", covariance, right)
    # Expected squared error of all values, from the same sums.
    second = covariance + solved[:, :, None] * solved[:, None, :]
    error = values.square().sum() - 2 * (solved * products).sum() + (second * sums).sum()
    return _Items(solved, covariance, max(float(error) / len(values), 1e-3)), tastes


def _blocks(user: Tensor) -> Iterator[tuple[slice, Tensor, slice]]:
    """Events of some users, each event's user counted from the first of them, and the users."""
    _, row, count = user.unique_consecutive(return_inverse=True, return_counts=True)
    bounds = functional.pad(count.cumsum(0), (1, 0)).tolist()
    for low in range(0, len(count), USERS_AT_A_TIME):
        high = min(low + USERS_AT_A_TIME, len(count))
        events = slice(bounds[low], bounds[high])
        yield events, row[events] - low, slice(low, high)


def _posterior(
    row: Tensor, seen: Tensor, value: Tensor, items: _Items, expected: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean [U, d] and covariance [U, d, d] of the users' tastes, of prior mean `expected`."""
    count, dim = expected.shape
    upper = torch.triu_indices(dim, dim)
    second = items.covariance + items.mean[:, :, None] * items.mean[:, None, :]
    factor, ones = items.mean[:, :dim], torch.ones_like(value)
    pairs = second[:, upper[0], upper[1]]
    summed = _symmetric(_sums(row, seen, count, ones, pairs), upper)
    covariance = torch.linalg.inv(summed / items.noise + torch.eye(dim, dtype=factor.dtype))
    weighted = _sums(row, seen, count, value, factor)
    weighted = weighted - _sums(row, seen, count, ones, second[:, :dim, dim])  # the biases' part
    weighted = weighted / items.noise + expected
    return torch.einsum("uij,uj->ui", covariance, weighted), covariance


def _sums(row: Tensor, column: Tensor, count: int, weight: Tensor, table: Tensor) -> Tensor:
    """Sum weight * table[column] by row, [count, ...]; `row` ascends."""
    starts = torch.searchsorted(row, torch.arange(count))
    return functional.embedding_bag(
        column, table, starts, mode="sum", per_sample_weights=weight.to(table.dtype)
    )


def _symmetric(flat: Tensor, upper: Tensor) -> Tensor:
    size = int(upper[0].max()) + 1
    full = flat.new_empty(len(flat), size, size)
    full[:, upper[0], upper[1]] = flat
    full[:, upper[1], upper[0]] = flat
    return full
