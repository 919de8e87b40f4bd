"""The queries that models answer, built from the split of the log.

Next item, leave-one-out (R1) and next item, temporal (R2) hide one item a query; CTR, temporal (K1)
groups labelled candidates into queries, as ranking inside an impression does (I1,
`shown_lists.py`); next basket (B1) hides a session (`hpgr/data/baskets.py`). A query sees the rows
of its user before `end` and nothing else, of these the newest `max_history`. Reads the arrays of
`hpgr.data.log`. Writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np

from hpgr.config import Evaluate
from hpgr.data.baskets import Asking
from hpgr.data.histories import runs
from hpgr.data.log import EventLog


@dataclass(frozen=True)
class Queries(Asking):
    """Retrieval queries: `row` int64 [Q] of the log holds the hidden event, `target` its item."""

    row: np.ndarray
    target: np.ndarray

    def take(self, index: np.ndarray | slice) -> Self:
        """The queries at `index`."""
        return type(self)(*(column[index] for column in vars(self).values()))


@dataclass(frozen=True)
class CandidateQueries(Asking):
    """Queries with C labelled candidates; those of query q are `offsets[q] : offsets[q + 1]`.

    `offsets` is int64 [Q + 1]; `item` int64 [C] and `label` int8 [C] describe the candidates, as
    does every field that a subclass adds.
    """

    offsets: np.ndarray
    item: np.ndarray
    label: np.ndarray

    def candidate_user(self) -> np.ndarray:
        """User of every candidate, int64 [C]."""
        return np.repeat(self.user, np.diff(self.offsets))

    def take(self, index: np.ndarray | slice) -> Self:
        """The queries at `index` with their candidates."""
        offsets, rows = runs(self.offsets[:-1][index], np.diff(self.offsets)[index])
        taken = {
            name: values[index if name in ("user", "end", "request_time") else rows]
            for name, values in vars(self).items()
            if name != "offsets"
        }
        return type(self)(**taken, offsets=offsets)


@dataclass(frozen=True)
class LabelledQueries(CandidateQueries):
    """K1: candidates are events of the log, `row` int64 [C]."""

    row: np.ndarray


Asked = TypeVar("Asked", bound=Asking)


def sampled(queries: Asked, settings: Evaluate) -> Asked:
    """A seeded sample of `evaluate.tuning_queries` queries, or all where there are not more."""
    if len(queries) <= settings.tuning_queries:
        return queries
    rng = np.random.default_rng(settings.seed)
    return queries.take(np.sort(rng.choice(len(queries), settings.tuning_queries, replace=False)))


def next_item(log: EventLog, split: int) -> Queries:
    """Every event of `split` with an earlier event of its user, given all earlier ones (R1, R2).

    With the leave-one-out split that is R1: one query a user, and the validation item is part of
    the test query's history. With the global-time split it is R2: the earlier events of the test
    period are history too. The request time is the hidden event's timestamp: the model knows
    when it is asked. Events that share a timestamp stand in the order of the source file.
    """
    user_of_event = log.user_of_event()
    row = np.flatnonzero(log.split == split)
    user = user_of_event[row]
    seen = row > log.user_offsets[user]
    row, user = row[seen], user[seen]
    return Queries(
        user=user,
        row=row,
        end=row,
        target=log.item[row].astype(np.int64),
        request_time=log.timestamp[row].astype(np.int64),
    )


def labelled(log: EventLog, split: int) -> LabelledQueries:
    """The events of `split` with their labels, those of one user and second as one query (K1).

    The history holds the events strictly before the request time, so events that share a
    timestamp see the same history and never each other: their order in the file is no order in
    time, and a model that could see it would read the answers of the same second. A user's first
    events are asked with an empty history.
    """
    row = np.flatnonzero(log.split == split)
    user = log.user_of_event()[row]
    time = log.timestamp[row].astype(np.int64)
    new = np.ones(len(row), dtype=bool)
    new[1:] = (np.diff(user) != 0) | (np.diff(time) != 0)
    first = np.flatnonzero(new)
    return LabelledQueries(
        user=user[first],
        # A split's boundary can fall inside a second: step back over equal timestamps before it.
        end=log.second_start()[row[first]],
        request_time=time[first],
        offsets=np.append(first, len(row)).astype(np.int64),
        row=row,
        item=log.item[row].astype(np.int64),
        label=np.asarray(log.label[row]),
    )
