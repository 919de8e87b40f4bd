"""Jagged histories: what the model knows of those who ask, in flat arrays.

`histories` copies them out of the log, `bounded` says how many at a time. Reads the arrays of
`hpgr.data.log`. Imports numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpgr.data.log import EventLog

EVENTS_AT_A_TIME = 1 << 22  # copied together, about 60 bytes each where they are sorted


@dataclass(frozen=True)
class Histories:
    """Jagged histories of Q queries, each with the time at which it asks.

    `offsets` int64 [Q + 1], from 0, delimits the rows of `item`, `action`, `timestamp` and
    `session`; `request_time` int64 [Q] is not earlier than any event of its history.
    """

    offsets: np.ndarray
    item: np.ndarray
    action: np.ndarray
    timestamp: np.ndarray
    session: np.ndarray
    request_time: np.ndarray

    @classmethod
    def gather(
        cls,
        source: EventLog | Histories,
        offsets: np.ndarray,
        rows: slice | np.ndarray,
        request_time: np.ndarray,
    ) -> Histories:
        """The `rows` of a log or of other histories, cut by `offsets`."""
        return cls(
            offsets=offsets,
            item=source.item[rows],
            action=source.action[rows],
            timestamp=source.timestamp[rows],
            session=source.session[rows],
            request_time=request_time,
        )

    def __len__(self) -> int:
        return len(self.request_time)

    @property
    def length(self) -> np.ndarray:
        """Number of events of each query, int64 [Q]."""
        return np.diff(self.offsets)

    def take(self, queries: slice | np.ndarray) -> Histories:
        """The queries that a slice, mask bool [Q] or indices int [P] name, in that order."""
        if isinstance(queries, slice):
            start, stop, step = queries.indices(len(self))
            if step == 1:  # neighbours: views instead of copies
                offsets = self.offsets[start : max(start, stop) + 1]
                rows = slice(offsets[0], offsets[-1])
                return self.gather(self, offsets - offsets[0], rows, self.request_time[queries])
        index = np.arange(len(self))[queries]
        return self.gather(
            self, *runs(self.offsets[index], self.length[index]), self.request_time[index]
        )

    def last(self, count: int) -> Histories:
        """The newest `count` events of each query."""
        length = np.minimum(self.length, count)
        return self.gather(self, *runs(self.offsets[1:] - length, length), self.request_time)

    @classmethod
    def joined(cls, parts: Sequence[Histories]) -> Histories:
        """The queries of several histories, one after the other."""
        columns = ("item", "action", "timestamp", "session", "request_time")
        rows = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
        return cls(offsets=offsets_of(np.concatenate([part.length for part in parts])), **rows)

    def without_empty(self) -> Histories:
        """The queries that have an event."""
        full = self.length > 0
        offsets = np.append(self.offsets[:-1][full], self.offsets[-1])  # empty ones hold no row
        return replace(self, offsets=offsets, request_time=self.request_time[full])

    def with_ids(self, item: np.ndarray, action: np.ndarray) -> Histories:
        """The same events renumbered: `item` [V] and `action` [A] give the new id of every id."""
        return replace(
            self,
            item=item[self.item].astype(np.int32),
            action=action[self.action].astype(np.int16),
        )


def histories(
    log: EventLog, user: np.ndarray, end: np.ndarray, request_time: np.ndarray, max_history: int
) -> Histories:
    """The last `max_history` events of each `user` before row `end` of the log (exclusive).

    Args:
        log: the sessionized log.
        user: user index of each query, [Q].
        end: first row of the log that a query may not see, [Q].
        request_time: seconds, [Q].
        max_history: events kept, the newest.
    """
    start = np.maximum(log.user_offsets[user], end - max_history)
    time = np.asarray(request_time, dtype=np.int64)
    return Histories.gather(log, *runs(start, end - start), time)


def runs(start: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows `start` .. `start + length` of each of Q runs, one run after the other.

    Returns:
        Bounds of the runs among the rows, int64 [Q + 1], and the rows, int64.
    """
    offsets = offsets_of(length)
    return offsets, np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], length)


def offsets_of(length: np.ndarray) -> np.ndarray:
    """Bounds of neighbouring runs of `length` [Q], int64 [Q + 1]."""
    return np.concatenate([[0], np.cumsum(length)]).astype(np.int64)


def bounded(events: np.ndarray, *, queries: int, most: int | None = None) -> Iterator[slice]:
    """Slices of consecutive queries that are answered together.

    A slice has at most `queries` queries and, unless a single one has more, `most` events:
    histories of many queries of one long user would each hold its past.

    Args:
        events: how many events each query's history holds, [Q].
        queries: most of a slice, at least 1.
        most: events of a slice; None: EVENTS_AT_A_TIME.
    """
    total = offsets_of(events)
    start = 0
    while start < len(events):
        limit = total[start] + (most or EVENTS_AT_A_TIME)
        fits = int(np.searchsorted(total, limit, side="right")) - 1
        stop = max(start + 1, min(fits, start + queries, len(events)))
        yield slice(start, stop)
        start = stop
