"""Baselines for retrieval, which only count: what a network has to beat.

Each is fitted on training events alone; later events reach it only through the history of the
query, as they reach the network. Reads the arrays of `hpgr.data.log`. Writes nothing.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from scipy import sparse

from hpgr.config import Evaluate
from hpgr.data.histories import Histories
from hpgr.data.log import FIRST_ITEM, TRAIN, EventLog
from hpgr.evaluation.model_protocols import Retriever
from hpgr.model.repeat_counts import session_counts

DAY_S = 86_400


def train_counts(log: EventLog) -> np.ndarray:
    """Training events of every item, int64 [num_items]; the reserved ids have none."""
    counts = np.bincount(log.item[log.split == TRAIN], minlength=log.meta.num_items)
    counts[:FIRST_ITEM] = 0
    return counts


class Popularity:
    """Number of training events: the same list for all."""

    def __init__(self, log: EventLog):
        self.count = train_counts(log).astype(np.float32)

    def retrieve(self, histories: Histories) -> np.ndarray:
        """float32 [Q, num_items]."""
        return np.tile(self.count, (len(histories), 1))


class Recency:
    """Training events that happened before the day of the request, older ones counting less.

    An event `a` days old weighs `0.5 ** (a / half_life_days)`. Items without such an event follow
    in order of their whole count.
    """

    def __init__(self, log: EventLog, *, half_life_days: float):
        rows = np.flatnonzero(log.split == TRAIN)
        self.half_life_days = half_life_days
        self.first = int(log.timestamp[rows].min()) if len(rows) else 0
        day = (log.timestamp[rows] - self.first) // DAY_S
        # Only days with events: a log of decades with gaps stays as small as its events.
        self.days, index = np.unique(day, return_inverse=True)
        self.by_day = sparse.csr_matrix(
            (np.ones(len(rows), dtype=np.float32), (index, log.item[rows])),
            shape=(len(self.days), log.meta.num_items),
        )
        self.fallback = _fallback(log)

    def retrieve(self, histories: Histories) -> np.ndarray:
        """float32 [Q, num_items]."""
        today = (histories.request_time - self.first) // DAY_S
        age = today[:, None] - self.days[None, :]
        weight = np.where(age > 0, 0.5 ** (np.maximum(age, 0) / self.half_life_days), 0.0)
        return weight.astype(np.float32) @ self.by_day + self.fallback


class Transitions:
    """Item-to-item transitions, decayed on both sides: the strong baseline.

    Training counts "j came g events after i" with weight `decay ** (g - 1)` for g up to `events`;
    the row of i is divided by its sum. A query adds the rows of its newest `events` items, the
    g-th newest with weight `decay ** (g - 1)`.
    """

    def __init__(self, log: EventLog, *, decay: float, events: int):
        self.decay, self.events = decay, events
        rows = np.flatnonzero(log.split == TRAIN)
        user = np.searchsorted(log.user_offsets, rows, side="right") - 1
        item = np.asarray(log.item[rows], dtype=np.int64)
        num_items = log.meta.num_items
        table = sparse.csr_matrix((num_items, num_items), dtype=np.float32)
        for gap in range(1, min(events, len(rows) - 1) + 1):
            pair = np.flatnonzero(user[:-gap] == user[gap:])
            weight = np.full(len(pair), decay ** (gap - 1), dtype=np.float32)
            table = table + sparse.csr_matrix(
                (weight, (item[pair], item[pair + gap])), shape=(num_items, num_items)
            )
        total = np.asarray(table.sum(axis=1)).ravel()
        self.table = sparse.diags_array(1.0 / np.where(total > 0, total, 1.0)) @ table
        self.table = self.table.astype(np.float32).tocsr()
        self.fallback = _fallback(log)

    def retrieve(self, histories: Histories) -> np.ndarray:
        """float32 [Q, num_items]."""
        weight = history_weights(histories, self.table.shape[0], self.decay, self.events)
        return (weight @ self.table).toarray() + self.fallback


class Ease:
    """EASE, closed form, with a recency-weighted history.

    `B = I - P diag(1 / P)` with `P = (X'X + ridge I)^-1` over the users-by-items matrix of training
    events (0 or 1); a query's score is its history, the g-th newest event weighing
    `decay ** (g - 1)`, times B. Source: Steck, "Embarrassingly Shallow Autoencoders for Sparse
    Data", arXiv 1905.03375. Needs a dense catalogue-by-catalogue matrix.
    """

    def __init__(self, weights: np.ndarray, *, decay: float):
        self.weights, self.decay = weights, decay

    @staticmethod
    def fit(log: EventLog, *, ridge: float) -> np.ndarray:
        """B, float32 [num_items, num_items]; it does not depend on the decay of the history."""
        rows = np.flatnonzero(log.split == TRAIN)
        user = np.searchsorted(log.user_offsets, rows, side="right") - 1
        matrix = sparse.csr_matrix(
            (np.ones(len(rows), dtype=np.float32), (user, log.item[rows])),
            shape=(log.meta.num_users, log.meta.num_items),
        )
        matrix.data[:] = 1.0  # duplicates were summed: a repeat counts once
        gram = (matrix.T @ matrix).toarray()
        gram[np.diag_indices_from(gram)] += ridge
        factor = scipy.linalg.cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
        inverse = scipy.linalg.cho_solve(
            factor, np.eye(len(gram), dtype=np.float32), overwrite_b=True, check_finite=False
        )
        weights = inverse / -np.diag(inverse)
        np.fill_diagonal(weights, 0.0)
        return weights

    def retrieve(self, histories: Histories) -> np.ndarray:
        """float32 [Q, num_items]."""
        longest = int(histories.length.max(initial=0))
        return history_weights(histories, len(self.weights), self.decay, longest) @ self.weights


class PersonalFrequency:
    """Number of the user's sessions that held an item, older ones counting less; for baskets.

    A session with `a` later ones of its user weighs `decay ** a`. Equal items, and those that the
    user never had, stand in order of their training events. Source: P-TopFreq of Li et al., "A
    Next Basket Recommendation Reality Check", ACM TOIS 41(4), 2023; the decay is that of Hu et
    al., "Modeling Personalized Item Frequency Information for Next-basket Recommendation", SIGIR
    2020, without its groups.
    """

    def __init__(self, log: EventLog, *, decay: float):
        self.decay = decay
        count = train_counts(log)
        self.fallback = 1e-6 * count / max(1, count.max())

    def retrieve(self, histories: Histories) -> np.ndarray:
        """float64 [Q, num_items]: in float32 popularity would be lost beside a weight of 1."""
        query, item, count = session_counts(histories, self.decay)
        shape = (len(histories), len(self.fallback))
        return sparse.csr_matrix((count, (query, item)), shape=shape).toarray() + self.fallback


def history_weights(
    histories: Histories, num_items: int, decay: float, events: int
) -> sparse.csr_matrix:
    """Sparse [Q, num_items]: sum over the newest `events` events of `decay ** age`, newest 0."""
    length = histories.length
    age = np.repeat(histories.offsets[1:], length) - 1 - np.arange(histories.offsets[-1])
    query = np.repeat(np.arange(len(histories)), length)
    keep = (age < events) & (histories.item >= FIRST_ITEM)
    weight = (float(decay) ** age[keep]).astype(np.float32)
    return sparse.csr_matrix(
        (weight, (query[keep], histories.item[keep])), shape=(len(histories), num_items)
    )


def _fallback(log: EventLog) -> np.ndarray:
    """A trace of popularity, too small to move anything but ties at zero; float32 [num_items]."""
    count = train_counts(log)
    return (1e-9 * count / max(1, count.max())).astype(np.float32)


def all_baselines(
    log: EventLog, settings: Evaluate
) -> tuple[dict[str, list[Retriever]], list[str]]:
    """Every baseline with the variants to choose from on validation, and what was left out.

    Returns:
        Name to variants (one where nothing is to be chosen), and a sentence for each omission.
    """
    decays = settings.history_decays
    models: dict[str, list[Retriever]] = {
        "popularity": [Popularity(log)],
        "recency": [Recency(log, half_life_days=settings.recency_half_life_days)],
        "transitions": [
            Transitions(log, decay=decay, events=settings.transition_events) for decay in decays
        ],
    }
    if log.meta.num_items > settings.ease_max_items:
        return models, [
            f"ease is left out: {log.meta.num_items:,} items need a dense matrix of that width, "
            f"the limit is {settings.ease_max_items:,} (evaluate.ease_max_items)."
        ]
    weights = Ease.fit(log, ridge=settings.ease_ridge)
    models["ease"] = [Ease(weights, decay=decay) for decay in decays]
    return models, []
