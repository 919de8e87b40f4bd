"""Gradient-boosted trees of shown lists: a strong order inside them that learns no network.

Fitted to training lists; validation lists end the boosting. Features hold nothing of the list's own
second or later: how often training lists show an item and how often it was taken there (of other
users, a tenth at a time left out, as in `hpgr.evaluation.ranking_features`), what the user did with
it strictly before, and the same of the list as a whole. Reads the arrays of `hpgr.data.log`. Writes
nothing.

Shapes: L lists, C shown items, F features.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logit

from hpgr.config import Evaluate
from hpgr.data.log import FIRST_ITEM, TRAIN, VALIDATION, EventLog
from hpgr.evaluation.headline import WITH_POSITION
from hpgr.evaluation.ranking_features import FOLDS
from hpgr.evaluation.shown_queries import ShownLists
from hpgr.evaluation.trees import at_most, boosted

TREES = "boosted_trees"


def tree_scores(
    log: EventLog, asked: ShownLists, shown: dict[int, ShownLists], settings: Evaluate
) -> dict[str, np.ndarray]:
    """Probability that each item is taken, float64 [C], by trees without and with its position.

    Args:
        log: the sessionized log.
        asked: the lists to score.
        shown: the lists of each part of the split.
        settings: of the stage.

    Returns:
        By name; without the second one where positions are not known, and nothing where training
        lists do not hold both labels.
    """
    rates = ItemRates(shown[TRAIN], prior_events=settings.prior_events)
    train, held_out = (
        at_most(shown[part], settings.tree_events, seed=settings.seed)
        for part in (TRAIN, VALIDATION)
    )
    if len(np.unique(train.label)) < 2:
        return {}
    tables = [rates.table(log, lists, own=lists is train) for lists in (train, held_out, asked)]
    found = {}
    for name, placed in ((TREES, False), (f"{TREES}{WITH_POSITION}", True)):
        if placed and not all(lists.placed for lists in (train, asked)):
            continue
        first, second, last = (
            np.column_stack([table, lists.place]) if placed else table
            for table, lists in zip(tables, (train, held_out, asked), strict=True)
        )
        model = boosted(first, train.label, second, held_out.label, settings)
        found[name] = model.predict_proba(last)[:, 1]
    return found


class ItemRates:
    """Counts of training lists that show an item and of those in which it was taken, by fold."""

    def __init__(self, train: ShownLists, *, prior_events: float) -> None:
        self.prior = prior_events
        self.common = float(np.clip(train.label.mean(), 1e-3, 1 - 1e-3)) if len(train) else 0.5
        self.names, item = np.unique(train.external, return_inverse=True)
        # One more item than there are: what training lists never show.
        shape = (FOLDS, len(self.names) + 1)
        place = train.candidate_user() % FOLDS * shape[1] + item
        self.sums = np.stack(
            [
                np.bincount(place, weight, FOLDS * shape[1]).reshape(shape)
                for weight in (np.ones(len(item)), train.label.astype(np.float64))
            ]
        )

    def table(self, log: EventLog, lists: ShownLists, *, own: bool) -> np.ndarray:
        """Features of every shown item, float32 [C, F]; `own`: they are training lists."""
        place = np.searchsorted(self.names, lists.external)
        there = self.names[np.minimum(place, len(self.names) - 1)] == lists.external
        item = np.where(there, place, len(self.names))
        fold = lists.candidate_user() % FOLDS
        count, taken = self.sums.sum(axis=1)[:, item] - own * self.sums[:, fold, item]
        share = (taken + self.prior * self.common) / (count + self.prior)
        known = lists.item >= FIRST_ITEM
        columns = [np.log1p(count), logit(share), known, *_met(log, lists).T]
        return np.stack(columns, axis=1).astype(np.float32)


def _met(log: EventLog, lists: ShownLists) -> np.ndarray:
    """Earlier events of the user of each list with its items, float64 [C, F]; NaN: none.

    How often, how many events and seconds ago at last, the order of that in the list, whether it
    was the newest event; and of the list its size, how many of its items are known and were met,
    the number of events before and the seconds since the newest.
    """
    found = np.full((len(lists.item), 10), np.nan)
    for n, (user, end, time) in enumerate(
        zip(lists.user, lists.end, lists.request_time, strict=True)
    ):
        own = slice(lists.offsets[n], lists.offsets[n + 1])
        seen = slice(log.user_offsets[user], end)
        item, age = lists.item[own], np.arange(end - seen.start, 0, -1)
        same = (item[:, None] == np.asarray(log.item[seen])) & (item >= FIRST_ITEM)[:, None]
        met = same.any(axis=1)
        row = found[own]
        row[:, 0] = same.sum(axis=1)
        row[:, 5:8] = len(item), (item >= FIRST_ITEM).sum(), met.sum()
        row[:, 8] = len(age)
        if not len(age):
            continue
        since = time - np.asarray(log.timestamp[seen])
        last = len(age) - 1 - same[:, ::-1].argmax(axis=1)
        row[met, 1], row[met, 2] = age[last[met]], since[last[met]]
        row[met, 3] = (row[met, 1][:, None] > row[met, 1]).sum(axis=1)
        row[:, 4] = same[:, -1]
        row[:, 9] = since[-1]
    return found
