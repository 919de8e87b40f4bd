"""Queries for whole baskets (B1), and what every query has: who asks, when, and what it may see.

Reads the arrays of `hpgr.data.log`. Imports numpy only; writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from hpgr.data.histories import Histories, histories, offsets_of, runs
from hpgr.data.log import EventLog
from hpgr.data.shared_windows import SharedWindows


@dataclass(frozen=True)
class Asking:
    """Q queries, sorted by user and time, each int64 [Q]: who asks, when, and what he may see.

    `end` is the first row of the log that a query may not see.
    """

    user: np.ndarray
    end: np.ndarray
    request_time: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: np.ndarray | slice) -> Self:
        """The queries at `index`."""
        raise NotImplementedError

    def visible(self, log: EventLog) -> np.ndarray:
        """Number of events that each query may see, int64 [Q]."""
        return self.end - log.user_offsets[self.user]

    def histories(self, log: EventLog, max_history: int) -> Histories:
        """The newest `max_history` events that each query may see."""
        return histories(log, self.user, self.end, self.request_time, max_history)

    def windows(self, log: EventLog, max_history: int) -> SharedWindows:
        """Windows of at most `max_history` events that queries of one user share."""
        return SharedWindows.of(
            log, self.user, self.end, self.request_time, max_history=max_history
        )


@dataclass(frozen=True)
class Baskets(Asking):
    """B1: queries with T hidden items; those of query q are `offsets[q] : offsets[q + 1]`.

    `offsets` is int64 [Q + 1]; `item` int64 [T] holds the items of each basket, each once.
    """

    offsets: np.ndarray
    item: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """Number of hidden items of each query, int64 [Q]."""
        return np.diff(self.offsets)

    def of_item(self) -> np.ndarray:
        """Query of every hidden item, int64 [T]."""
        return np.repeat(np.arange(len(self)), self.size)

    def take(self, index: np.ndarray | slice) -> Self:
        """The queries at `index` with their items."""
        offsets, rows = runs(self.offsets[:-1][index], self.size[index])
        user, end, time = self.user[index], self.end[index], self.request_time[index]
        return type(self)(user, end, time, offsets, self.item[rows])

    def only(self, chosen: np.ndarray) -> Baskets:
        """The same queries with the items that the mask `chosen` [T] names; some may have none."""
        size = np.bincount(self.of_item()[chosen], minlength=len(self))
        return replace(self, offsets=offsets_of(size), item=self.item[chosen])


def next_basket(log: EventLog, split: int) -> Baskets:
    """Every session that begins in `split`, given all that its user did before it (B1).

    A session belongs to the split in which it begins, for that is when it is asked for; what it
    holds beyond the end of that split is left out, so that validation looks at no test event. The
    history holds the events strictly before the session's first second, which is the time of
    request: sessions that begin in one second see the same history and never each other. Of
    sessions that interleave, what happened before that second is seen, also of one that goes on. A
    session without an earlier event of its user is no query.
    """
    user = log.user_of_event()
    key = (user << 32) | log.session
    _, first, of_event = np.unique(key, return_index=True, return_inverse=True)
    end = log.second_start()[first]
    asked = (log.split[first] == split) & (end > log.user_offsets[user[first]])
    rows = np.flatnonzero(asked[of_event] & (log.split == split))
    width = log.meta.num_items  # one key a pair: np.unique over columns is far slower
    session, item = np.divmod(np.unique(of_event[rows] * width + log.item[rows]), width)
    first = first[asked]
    return Baskets(
        user=user[first],
        end=end[asked],
        request_time=log.timestamp[first].astype(np.int64),
        offsets=offsets_of(np.bincount(session, minlength=len(asked))[asked]),
        item=item,
    )
