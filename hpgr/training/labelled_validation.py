"""AUC and GAUC of labelled validation events, for early stopping. Never opens the test split.

Whole users are drawn, since an order within a user needs several of its events. Each sees what
happened strictly before its second, of this the newest `max_history` / 2 to `max_history` events.
"""

from __future__ import annotations

import numpy as np

from hpgr.data.batches import CandidateRows
from hpgr.data.log import TRAIN, VALIDATION, EventLog
from hpgr.data.shared_windows import SharedWindows
from hpgr.metrics import auc, gauc
from hpgr.model.scoring import Scorer
from hpgr.training.device import ALONE, Device

EVENTS_AT_A_TIME = 8192  # of windows; several processes share them
STEPS = 2  # to a window: the fewer, the fewer windows to read


class LabelledValidation:
    """A fixed, seeded sample of users with labelled validation events.

    `rows` are the events, `label` theirs, `new` says whether the user of each has no training
    event.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        max_history: int,
        num_events: int,
        seed: int,
        among: Device = ALONE,
    ) -> None:
        """`num_events` bounds the sample, but for the user that reaches it."""
        self.log, self.among = log, among
        split, user = np.asarray(log.split), log.user_of_event()
        rows = np.flatnonzero(split == VALIDATION)
        rows = rows[rows > log.user_offsets[user[rows]]]  # an event without history is no query
        count = np.bincount(user[rows], minlength=log.meta.num_users)
        drawn = np.random.default_rng(seed).permutation(np.flatnonzero(count))
        drawn = drawn[np.cumsum(count[drawn]) - count[drawn] < num_events]
        self.rows = rows[np.isin(user[rows], drawn)]
        self.label = np.asarray(log.label[self.rows])
        self.user = user[self.rows]
        trained = np.zeros(log.meta.num_users, dtype=bool)
        trained[user[split == TRAIN]] = True
        self.new = ~trained[self.user]
        self.end = log.second_start()[self.rows]
        self.windows = SharedWindows.of(
            log,
            self.user,
            self.end,
            log.timestamp[self.rows],
            max_history=max_history,
            steps=STEPS,
        )

    def __call__(self, scorer: Scorer) -> dict[str, float]:
        """Return AUC, that of new and of returning users, and GAUC, where they are defined.

        `validation_ranking` is the mean of GAUC and of the AUC of either kind of users.
        """
        if not len(self.rows):
            return {}
        score = self.scores(scorer)
        label = self.label
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

    def scores(self, scorer: Scorer) -> np.ndarray:
        """Return pCTR of `rows`, float32, the same in every process."""
        log, scores_N = self.log, np.zeros(len(self.rows), dtype=np.float32)
        for part in self.among.own(self.windows.parts(EVENTS_AT_A_TIME)):
            rows = self.rows[part.queries]
            asked = CandidateRows(
                offsets=part.bounds - part.bounds[0],
                item=log.item[rows],
                visible=part.visible(self.end[part.queries]),
                time=log.timestamp[rows],
                label=log.label[rows],
            )
            scores_N[part.queries] = scorer.rank_rows(part.histories(log), asked)
        return self.among.summed(scores_N)
