"""AUC and GAUC of shown validation lists, for early stopping. Never opens the test split.

Whole lists are drawn. Each has a history of its own, as it has in training and evaluation.
"""

from __future__ import annotations

import numpy as np

from hpgr.data.histories import bounded, histories
from hpgr.data.list_log import ListLog
from hpgr.data.log import VALIDATION, EventLog
from hpgr.metrics import auc, gauc
from hpgr.model.scoring import Scorer
from hpgr.training.device import ALONE, Device

ROWS_AT_A_TIME = 8192  # of histories and shown items; several processes share them


class ListValidation:
    """A fixed, seeded sample of validation lists with their N shown items.

    `label`, `place` and `of_list`, the number of the list in the sample, are theirs, each [N].
    """

    def __init__(
        self,
        log: EventLog,
        lists: ListLog,
        *,
        max_history: int,
        num_items: int,
        seed: int,
        among: Device = ALONE,
    ) -> None:
        """`num_items` bounds the shown items, but for the list that reaches it."""
        self.log, self.lists, self.max_history, self.among = log, lists, max_history, among
        drawn = np.random.default_rng(seed).permutation(lists.of(VALIDATION))
        size = lists.size[drawn]
        self.drawn = np.sort(drawn[np.cumsum(size) - size < num_items])
        self.offsets, self.rows = lists.items_of(self.drawn)
        self.of_list = np.repeat(np.arange(len(self.drawn)), np.diff(self.offsets))
        self.label, self.place = (column[self.rows] for column in (lists.label, lists.place))

    def __call__(self, scorer: Scorer) -> dict[str, float]:
        """Return AUC of all shown items and GAUC, the AUC inside each list weighted by its items.

        `placed` is behind the names of those of a scorer that knows the places, where the lists
        have them. `validation_ranking` is GAUC, the mean of both: the order inside a list is what
        is asked, of lists as they are shown and before they are. .5 where labels are all alike.
        """
        found, inside = {}, []
        for suffix, placed in (("", False), ("_placed", True)):
            if placed and (self.place < 0).all():
                continue
            score = self.scores(scorer, placed=placed)
            for name, area in (
                ("auc", auc(self.label, score)),
                ("gauc", gauc(self.of_list, self.label, score)),
            ):
                found[f"validation_{name}{suffix}"] = 0.5 if area is None else area
            inside.append(found[f"validation_gauc{suffix}"])
        return {**found, "validation_ranking": float(np.mean(inside))}

    def scores(self, scorer: Scorer, *, placed: bool = False) -> np.ndarray:
        """Return pCTR of the shown items, float32 [N], the same in every process.

        If `placed`, the scorer knows their places.
        """
        log, lists, scores_N = self.log, self.lists, np.zeros(len(self.rows), dtype=np.float32)
        user, end, time = (
            column[self.drawn] for column in (lists.user, lists.end, lists.timestamp)
        )
        read = np.minimum(end - log.user_offsets[user], self.max_history) + np.diff(self.offsets)
        parts = bounded(read, queries=max(1, len(read)), most=ROWS_AT_A_TIME)
        for part in self.among.own(parts):
            bounds = self.offsets[part.start : part.stop + 1]
            shown = slice(bounds[0], bounds[-1])
            past = histories(log, user[part], end[part], time[part], self.max_history)
            item = lists.item[self.rows[shown]]
            place = self.place[shown] if placed else None
            scores_N[shown] = scorer.rank(past, bounds - bounds[0], item, place)
        return self.among.summed(scores_N)
