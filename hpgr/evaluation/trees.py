"""Gradient-boosted trees on leak-free features: a strong model of likes that learns no network.

Fitted to training events, each seen with what its user did strictly before; validation ends the
boosting. They are used where they are fitted and never saved. Reads the arrays of
`hpgr.data.log`. Writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from hpgr.config import Evaluate
from hpgr.data.log import EventLog
from hpgr.evaluation.fold_in import FoldIn
from hpgr.evaluation.protocols import CandidateQueries, LabelledQueries
from hpgr.evaluation.ranking_features import RankingFeatures

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingClassifier

PATIENCE = 15  # rounds without a gain on validation
LEAVES = 15
LEAF_EVENTS, LEAF_SHARE = 20, 0.001  # that a leaf holds at least, and of all events
RIDGE = 5.0
Labelled = TypeVar("Labelled", bound=CandidateQueries)


class Trees:
    """Boosted trees with their features; fit them with `Trees.fit`."""

    def __init__(self, features: RankingFeatures, model: HistGradientBoostingClassifier):
        self.features, self.model = features, model

    @classmethod
    def fit(
        cls,
        log: EventLog,
        fold_in: FoldIn,
        settings: Evaluate,
        *,
        rows: LabelledQueries,
        held_out: LabelledQueries,
    ) -> Trees:
        """Fit the training events `rows`, which hold both labels; `held_out` ends the boosting."""
        features = RankingFeatures(log, fold_in, prior_events=settings.prior_events)
        watched = features.table(log, held_out) if len(held_out) else np.empty((0, 0))
        table = features.table(log, rows)
        return cls(features, boosted(table, rows.label, watched, held_out.label, settings))

    def probability(self, log: EventLog, queries: LabelledQueries) -> np.ndarray:
        """Probability that each candidate is liked, float64 [C]."""
        if not len(queries):
            return np.empty(0)
        return self.model.predict_proba(self.features.table(log, queries))[:, 1]


def boosted(
    table: np.ndarray,
    label: np.ndarray,
    held_out: np.ndarray,
    held_out_label: np.ndarray,
    settings: Evaluate,
) -> HistGradientBoostingClassifier:
    """Boost trees on `table` [C, F]; those held out, if there are any, end it by their log loss."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # a second to import

    validates = len(held_out) > 0
    model = HistGradientBoostingClassifier(
        max_iter=settings.tree_rounds,
        learning_rate=settings.tree_learning_rate,
        max_leaf_nodes=LEAVES,
        min_samples_leaf=max(LEAF_EVENTS, int(LEAF_SHARE * len(label))),
        l2_regularization=RIDGE,
        early_stopping=validates,
        n_iter_no_change=PATIENCE,
        random_state=settings.seed % 2**32,
    )
    watched = {"X_val": held_out, "y_val": held_out_label} if validates else {}
    return model.fit(table, label, **watched)


def at_most(queries: Labelled, candidates: int, *, seed: int) -> Labelled:
    """A seeded sample of queries, in their order, that have at most so many candidates in all."""
    if len(queries.item) <= candidates:
        return queries
    order = np.random.default_rng(seed).permutation(len(queries))
    total = np.cumsum(np.diff(queries.offsets)[order])
    return queries.take(np.sort(order[: np.searchsorted(total, candidates, side="right")]))
