"""Item factors that explain the values of actions: what stage 1 learns of preference.

    value = bias of the item + factor of the item . taste of the user + noise
    taste ~ N(sum of the hints of the user's n items / sqrt(n), I)

Tastes are integrated out by expectation maximisation; factors and biases are maximum a posteriori.
This is probabilistic matrix factorisation (Salakhutdinov and Mnih, 2007) with exact posteriors of
the users. Hints say what it means to meet an item, whatever the action, as the implicit feedback of
SVD++ (Koren, 2008); they are a ridge regression of the tastes on the items. Items are near each
other where the same people like them, not where they are watched together. Training events only.
Reads the arrays of `hpgr.data.log`. Writes nothing.

Shapes: E events, U users, V items, d width of the factors, S entries of a symmetric matrix.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hpgr.data.log import TRAIN, EventLog
from hpgr.model.readout import ItemFactors

FIRST_FACTOR = 0.4  # prior mean of the first factor: people differ in how much they like anything
FACTOR_PRECISION = 125.0  # of the prior of a factor
BIAS_PRECISION = 3.75
NOISE = 0.6  # variance to start from; that of the values is one
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
    prior = torch.zeros(dim + 1, dtype=torch.float64)
    prior[0] = FIRST_FACTOR
    shape = (log.meta.num_items, dim)
    factor = 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64) + prior[:dim]
    if start is not None:
        factor[: len(start)] = start.double()
    bias, hint, noise = factor.new_zeros(log.meta.num_items), torch.zeros_like(factor), NOISE
    ridge = _Ridge(user, item, log.meta.num_items, seed=seed) if len(values) else None
    expected = factor.new_zeros(len(user.unique_consecutive()), dim)
    for number in range(ROUNDS if len(values) else 0):
        factor, bias, noise, tastes = _round(
            user, item, values, factor, bias, noise, expected, prior
        )
        if number in HINT_ROUNDS and ridge is not None:
            hint, expected = ridge(tastes)
    value = ((raw - mean) / deviation).nan_to_num(0.0)
    valued = raw.isfinite().float()
    return ItemFactors(factor.float(), bias.float(), hint.float(), value.float(), valued, noise)


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
    user: Tensor,
    item: Tensor,
    values: Tensor,
    factor: Tensor,
    bias: Tensor,
    noise: float,
    expected: Tensor,
    prior: Tensor,
) -> tuple[Tensor, Tensor, float, Tensor]:
    """One round: posteriors of the users, then factors, biases and noise given them.

    The last of the results are the users' mean tastes [U, d]; `expected` are those of their prior.
    """
    num_items, dim = factor.shape
    upper = torch.triu_indices(dim + 1, dim + 1)
    moments = factor.new_zeros(num_items, upper.shape[1])  # sums of E[t t'], t = (taste, 1)
    products = factor.new_zeros(num_items, dim + 1)  # sums of value * E[t]
    tastes = torch.empty_like(expected)
    for events, row, users in _blocks(user):
        seen, value = item[events], values[events]
        mean, covariance = _posterior(row, seen, value - bias[seen], factor, noise, expected[users])
        tastes[users] = mean
        second = functional.pad(covariance, (0, 1, 0, 1))
        mean = functional.pad(mean, (0, 1), value=1.0)
        second += mean[:, :, None] * mean[:, None, :]
        order = seen.argsort(stable=True)
        by_item = (seen[order], row[order], num_items)
        moments += _sums(*by_item, torch.ones_like(value), second[:, upper[0], upper[1]])
        products += _sums(*by_item, value[order], mean)
    sums = _symmetric(moments, upper)
    precision = torch.full_like(prior, FACTOR_PRECISION)
    precision[-1] = BIAS_PRECISION
    solved = torch.linalg.solve(
        sums / noise + precision.diag(), products / noise + precision * prior
    )
    # Expected squared error of all values, from the same sums.
    error = values.square().sum() - 2 * (solved * products).sum()
    error += torch.einsum("vi,vij,vj->", solved, sums, solved)
    return solved[:, :dim], solved[:, dim], max(float(error) / len(values), 1e-3), tastes


def _blocks(user: Tensor) -> Iterator[tuple[slice, Tensor, slice]]:
    """Events of some users, each event's user counted from the first of them, and the users."""
    _, row, count = user.unique_consecutive(return_inverse=True, return_counts=True)
    bounds = functional.pad(count.cumsum(0), (1, 0)).tolist()
    for low in range(0, len(count), USERS_AT_A_TIME):
        high = min(low + USERS_AT_A_TIME, len(count))
        events = slice(bounds[low], bounds[high])
        yield events, row[events] - low, slice(low, high)


def _posterior(
    row: Tensor,
    seen: Tensor,
    residual: Tensor,
    factor: Tensor,
    noise: float,
    expected: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean [U, d] and covariance [U, d, d] of the users' tastes, of prior mean `expected`."""
    count, dim = expected.shape
    upper = torch.triu_indices(dim, dim)
    pairs = factor[:, upper[0]] * factor[:, upper[1]]
    summed = _symmetric(_sums(row, seen, count, torch.ones_like(residual), pairs), upper)
    covariance = torch.linalg.inv(summed / noise + torch.eye(dim, dtype=factor.dtype))
    weighted = _sums(row, seen, count, residual, factor) / noise + expected
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
