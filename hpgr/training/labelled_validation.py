"""AUC and GAUC of labelled validation events, for early stopping. Never opens the test split.

Whole users are drawn, since an order within a user needs several of its events. A user's events
come in blocks that share one history, so that all of them cost little more than one: each sees what
happened strictly before its second, of the newest `max_history` / 2 to `max_history` events.
"""

from __future__ import annotations

import numpy as np

from hpgr.data.batches import CandidateRows, events_before
from hpgr.data.histories import Histories, bounded, runs
from hpgr.data.log import TRAIN, VALIDATION, EventLog
from hpgr.metrics import auc, gauc
from hpgr.model.scoring import Scorer


class LabelledValidation:
    """A fixed, seeded sample of users with labelled validation events.

    `rows` are the events, `new` says whether the user of each has no training event.
    """

    def __init__(self, log: EventLog, *, max_history: int, num_events: int, seed: int) -> None:
        """`num_events` bounds the sample, but for the user that reaches it."""
        self.log = log
        split, user = np.asarray(log.split), log.user_of_event()
        rows = np.flatnonzero(split == VALIDATION)
        rows = rows[rows > log.user_offsets[user[rows]]]  # an event without history is no query
        count = np.bincount(user[rows], minlength=log.meta.num_users)
        drawn = np.random.default_rng(seed).permutation(np.flatnonzero(count))
        drawn = drawn[np.cumsum(count[drawn]) - count[drawn] < num_events]
        self.rows = rows[np.isin(user[rows], drawn)]
        self.user = user[self.rows]
        trained = np.zeros(log.meta.num_users, dtype=bool)
        trained[user[split == TRAIN]] = True
        self.new = ~trained[self.user]
        # A block starts at the first event of a user and after every max_history / 2 of them.
        first = np.append(True, self.user[1:] != self.user[:-1])[: len(self.rows)]
        start = np.flatnonzero(first)
        place = np.arange(len(self.rows)) - np.repeat(start, np.diff(np.append(start, len(first))))
        blocks = np.flatnonzero(place % max(1, max_history // 2) == 0)
        self.bounds = np.append(blocks, len(self.rows))
        last = self.rows[self.bounds[1:] - 1]
        self.last = last
        self.first = np.maximum(log.user_offsets[self.user[blocks]], last - max_history)

    def __call__(self, scorer: Scorer) -> dict[str, float]:
        """Return AUC, that of new and of returning users, and GAUC, where they are defined.

        `validation_ranking` is the mean of GAUC and of the AUC of either kind of users.
        """
        if not len(self.rows):
            return {}
        score = self._scores(scorer)
        label = np.asarray(self.log.label[self.rows])
        groups = {
            "auc_new": auc(label[self.new], score[self.new]),
            "auc_returning": auc(label[~self.new], score[~self.new]),
            "gauc": gauc(self.user, label, score),
        }
        apart = {name: value for name, value in groups.items() if value is not None}
        overall = auc(label, score)
        overall = 0.5 if overall is None else overall  # labels all alike: no order is better
        mean = float(np.mean(list(apart.values()))) if apart else overall
        scores = {"auc": overall, **apart, "ranking": mean}
        return {f"validation_{name}": value for name, value in scores.items()}

    def _scores(self, scorer: Scorer) -> np.ndarray:
        log, scores = self.log, []
        cost = self.last - self.first + np.diff(self.bounds)
        for part in bounded(cost, queries=len(cost)):
            offsets, seen = runs(self.first[part], (self.last - self.first)[part])
            past = Histories.gather(log, offsets, seen, log.timestamp[self.last[part]])
            bounds = self.bounds[part.start : part.stop + 1]
            rows = self.rows[bounds[0] : bounds[-1]]
            time = log.timestamp[rows]
            query = np.repeat(np.arange(len(past)), np.diff(bounds))
            scores.append(
                scorer.rank_rows(
                    past,
                    CandidateRows(
                        offsets=bounds - bounds[0],
                        item=log.item[rows],
                        visible=events_before(past, query, time),
                        time=time,
                        label=log.label[rows],
                    ),
                )
            )
        return np.concatenate(scores)
