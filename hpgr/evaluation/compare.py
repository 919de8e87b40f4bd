"""Certainty of a difference: bootstrap over users.

Users are resampled, not queries, because the queries of one user resemble each other. All models
are judged on the same resamples, so differences are paired. Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from hpgr.config import Evaluate
from hpgr.metrics import auc_of_counts

CELLS = 1 << 23  # user counts held at a time, 64 MiB


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % bootstrap interval; `p` is two-sided against zero."""

    value: float
    low: float
    high: float
    p: float


def resamples(num_users: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Draws of each user in every resample, in blocks [b, num_users], `samples` rows in all."""
    rng = np.random.default_rng(seed)
    block = max(1, CELLS // max(1, num_users))
    for start in range(0, samples, block):
        size = min(block, samples - start)
        drawn = rng.integers(num_users, size=(size, num_users))
        drawn += np.arange(size)[:, None] * num_users
        counts = np.bincount(drawn.ravel(), minlength=size * num_users)
        yield counts.reshape(size, num_users).astype(np.float64)


def bootstrap_means(
    user: np.ndarray, values: np.ndarray, settings: Evaluate, *, weight: np.ndarray | None = None
) -> np.ndarray:
    """Weighted means of `values` in every resample of the users, float64 [samples, M].

    Args:
        user: user of every row, [Q].
        values: one column a model and metric, [Q, M].
        settings: number of resamples and seed; equal seeds and users give equal resamples.
        weight: of every row, [Q]; None: 1.
    """
    users, index = np.unique(user, return_inverse=True)
    weight = np.ones(len(user)) if weight is None else weight
    total = np.bincount(index, weights=weight)
    sums = np.stack(
        [np.bincount(index, weights=weight * column) for column in values.T.astype(np.float64)],
        axis=1,
    )
    drawn = resamples(len(users), settings.bootstrap_samples, settings.seed)
    return np.concatenate([(block @ sums) / (block @ total)[:, None] for block in drawn])


def bootstrap_metrics(
    user: np.ndarray, values: Mapping[str, Mapping[str, np.ndarray]], settings: Evaluate
) -> dict[str, dict[str, np.ndarray]]:
    """`bootstrap_means` of named `values` [Q], float64 [samples] by the same names."""
    columns = [column for row in values.values() for column in row.values()]
    means = iter(bootstrap_means(user, np.stack(columns, axis=1), settings).T)
    return {name: {inner: next(means) for inner in row} for name, row in values.items()}


def bootstrap_auc(
    user: np.ndarray, label: np.ndarray, scores: Mapping[str, np.ndarray], settings: Evaluate
) -> dict[str, np.ndarray]:
    """AUC over all candidates in every resample of the users, float64 [samples], by model.

    A candidate counts as often as its user was drawn. Resamples without both classes are NaN.

    Args:
        user: user of every candidate, [C].
        label: 0 or 1, [C].
        scores: [C], by model.
        settings: as in `bootstrap_means`.
    """
    users, index = np.unique(user, return_inverse=True)
    tables = []
    for score in scores.values():
        values, place = np.unique(score, return_inverse=True)
        # Candidates of each user at each distinct score, lowest score first, by class.
        tables.append(
            [
                sparse.csr_matrix(
                    (np.ones(len(index))[chosen], (index[chosen], place[chosen])),
                    shape=(len(users), len(values)),
                )
                for chosen in (label == 1, label != 1)
            ]
        )
    rows = max(1, CELLS // max(1, len(label)))
    result = []
    for block in resamples(len(users), settings.bootstrap_samples, settings.seed):
        for start in range(0, len(block), rows):
            drawn = block[start : start + rows]
            result.append([auc_of_counts(drawn @ p, drawn @ n) for p, n in tables])
    return dict(zip(scores, np.concatenate(result, axis=1), strict=True))


def estimate(value: float, replicates: np.ndarray) -> Estimate:
    """`value` with the percentile interval of its bootstrap `replicates`, [samples].

    p counts the replicates on the far side of zero, doubled, and the observed value as one more
    replicate, so that it never is zero; identical systems give 1.
    """
    replicates = replicates[~np.isnan(replicates)]
    if not len(replicates):
        return Estimate(value, value, value, 1.0)
    low, high = np.quantile(replicates, [0.025, 0.975])
    side = min((replicates <= 0).sum(), (replicates >= 0).sum())
    p = min(1.0, 2.0 * (side + 1) / (len(replicates) + 1))
    return Estimate(float(value), float(low), float(high), float(p))
