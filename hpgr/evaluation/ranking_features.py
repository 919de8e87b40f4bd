"""Features of ranking candidates that hold nothing of the candidate's own second or later.

Statistics of items count training events; for a training event they leave out a tenth of the users,
its own among them. To leave out the event alone would show its label to trees that know the item:
the less often the others liked it, the likelier this one did. Statistics of users read their events
strictly before the candidate's second: means of labels and of residuals (value less the item's
bias) by age, the fold-in's prediction, and means of residuals over history events like the
candidate: near it in the factors, sharing a category, the same item. Reads the arrays of
`hpgr.data.log`. Writes nothing.

Shapes: Q queries and C candidates of one user, N events of the user's history, V items, F features.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.special import logit

from hpgr.data.log import TRAIN, EventLog
from hpgr.evaluation.fold_in import Belief, FoldIn, discounted_sums
from hpgr.evaluation.protocols import LabelledQueries

FOLDS = 10  # of users
NEAREST = 32  # history events whose items are nearest to the candidate's
KERNELS = (8.0, 16.0)  # an event weighs exp(kernel * (cosine - 1))
PRIOR_LIKE = 2.0  # events that the prior of a mean over like events weighs
DECAYS = (0.8, 0.97, 1.0)  # of an event by one place
CELLS = 1 << 21  # candidates times history events that are compared at a time


class RankingFeatures:
    """Features by a fitted fold-in and the training events of `log`.

    `prior_events` is the weight of the common mean in means of items and users.
    """

    def __init__(self, log: EventLog, fold_in: FoldIn, *, prior_events: float):
        self.fold_in, self.prior = fold_in, prior_events
        factors, shape = fold_in.factors, (FOLDS, log.meta.num_items)
        train = np.flatnonzero(log.split == TRAIN)
        label = np.asarray(log.label[train], dtype=np.float64)
        self.common = float(np.clip(label.mean(), 1e-3, 1 - 1e-3)) if len(label) else 0.5
        # Of the items by fold of users: events, likes and sums of values, [3, FOLDS, V].
        place = log.user_of_event()[train] % FOLDS * shape[1] + log.item[train]
        self.sums = np.stack(
            [
                np.bincount(place, weight, FOLDS * shape[1]).reshape(shape)
                for weight in (np.ones(len(train)), label, self._values(log, train))
            ]
        )
        length = np.linalg.norm(factors.factor, axis=1, keepdims=True)
        self.unit = (factors.factor / np.maximum(length, 1e-9)).astype(np.float32)
        self.categories = sparse.csr_matrix(
            (np.ones(len(log.category), dtype=np.float32), log.category, log.category_offsets),
            shape=(shape[1], log.meta.num_categories),
        )

    def table(self, log: EventLog, queries: LabelledQueries) -> np.ndarray:
        """float32 [candidates, F]."""
        rows = [self._of_user(log, belief) for belief in self.fold_in.beliefs(log, queries)]
        item = self._of_items(log, queries)
        table = np.hstack([item, np.concatenate(rows)])
        predicted = table[:, 2] + table[:, 3]  # the item's mean value and factor . taste
        return np.column_stack([table, predicted])

    def _values(self, log: EventLog, rows: np.ndarray) -> np.ndarray:
        action, factors = log.action[rows], self.fold_in.factors
        return factors.value[action] * factors.valued[action]

    def _of_items(self, log: EventLog, queries: LabelledQueries) -> np.ndarray:
        """Log count, log odds of a like and mean value of the items in training, [C, 3]."""
        own = log.split[queries.row] == TRAIN
        fold = queries.candidate_user() % FOLDS
        known = self.sums.sum(axis=1)[:, queries.item]
        count, liked, value = known - own * self.sums[:, fold, queries.item]
        weight = count + self.prior
        share = (liked + self.prior * self.common) / weight
        columns = [np.log1p(count), logit(share), value / weight]
        return np.stack(columns, axis=1).astype(np.float32)

    def _of_user(self, log: EventLog, belief: Belief) -> np.ndarray:
        """Everything that depends on who asks, [C, F']."""
        queries, factors = belief.queries, self.fold_in.factors
        query = np.repeat(np.arange(len(queries)), np.diff(queries.offsets))
        start = int(log.user_offsets[queries.user[0]])
        seen = slice(start, int(queries.end.max()))
        end = queries.end - start
        residual, _ = factors.residual(log, seen)
        by_query = self._paces(np.asarray(log.label[seen]) - self.common, residual, end)
        mean = by_query[-1]  # residual of the user, whatever its age
        newest = np.maximum(end - 1, 0)
        gap, last = np.full(len(end), np.nan), np.full(len(end), np.nan)
        if len(residual):
            last = np.where(end > 0, residual[newest], np.nan)
            past = np.asarray(log.timestamp[seen])[newest]
            gap = np.where(end > 0, np.log1p(queries.request_time - past), np.nan)
        by_query += [np.log1p(end), last, gap, *belief.taste.T]
        asked = factors.factor[queries.item]
        spread = np.sqrt(belief.variance + factors.noise)
        predicted = [belief.mean, belief.variance, belief.mean / spread]
        like = self._like(np.asarray(log.item[seen]), residual, belief, query, end, mean)
        of_query = np.stack(by_query, axis=1)[query]
        taken = asked * belief.taste[query]
        columns = [np.stack(predicted, axis=1), of_query, like, asked, taken]
        return np.hstack(columns).astype(np.float32)

    def _paces(self, label: np.ndarray, residual: np.ndarray, end: np.ndarray) -> list[np.ndarray]:
        """Means of label and residual by each of DECAYS, shrunk to the common mean, [Q] each."""
        rows = np.stack([label, residual, np.ones(len(label))], axis=1)
        found = []
        for decay in DECAYS:
            summed = discounted_sums(rows, decay)[end]
            prior = 1.0 if decay < 1 else self.prior
            found += [*(summed[:, :2] / (summed[:, 2:] + prior)).T]
        return found

    def _like(
        self,
        item: np.ndarray,
        residual: np.ndarray,
        belief: Belief,
        query: np.ndarray,
        end: np.ndarray,
        mean: np.ndarray,
    ) -> np.ndarray:
        """Means of residuals over history events like each candidate, and their weight, [C, F'].

        Args:
            item: of each history event, [N].
            residual: of each history event, [N].
            belief: the candidates.
            query: of each candidate, [C].
            end: number of events that a query sees, [Q].
            mean: the user's mean residual, [Q].
        """
        asked, factors = belief.queries.item, self.fold_in.factors
        found = np.zeros((len(asked), 3 * len(KERNELS) + 4))
        for block in _blocks(len(asked), len(item)):
            own, of = asked[block], query[block]
            hidden = np.arange(len(item)) >= end[of][:, None]
            cosine = self.unit[own] @ self.unit[item].T
            cosine[hidden] = -np.inf
            nearest = min(NEAREST, len(item))
            place = np.argpartition(-cosine, nearest - 1, axis=1)[:, :nearest]
            cosine = np.take_along_axis(cosine, place, axis=1)
            spoken = residual[place]
            left = spoken - np.einsum("cad,cd->ca", factors.factor[item[place]], belief.taste[of])
            columns = []
            for kernel in KERNELS:
                weight = np.exp(kernel * (cosine - 1))
                columns += _mean(weight, spoken - mean[of][:, None])
                columns.append(_mean(weight, left)[0])
            shared = (self.categories[own] @ self.categories[item].T).toarray()
            same = own[:, None] == item
            for weight in (np.where(hidden, 0, shared), same & ~hidden):
                columns += _mean(weight, residual - mean[of][:, None])
            found[block] = np.stack(columns, axis=1)
        return found


def _mean(weight: np.ndarray, value: np.ndarray) -> list[np.ndarray]:
    """Weighted mean of each row of `value` shrunk to zero, and the log of one plus the weight."""
    total = weight.sum(axis=1)
    return [(weight * value).sum(axis=1) / (total + PRIOR_LIKE), np.log1p(total)]


def _blocks(candidates: int, events: int) -> Iterator[slice]:
    if not events:
        return
    step = max(1, CELLS // events)
    for first in range(0, candidates, step):
        yield slice(first, first + step)
