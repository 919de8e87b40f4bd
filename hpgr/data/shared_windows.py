"""Windows of a user's events that neighbouring queries share, so that a network reads them once.

A network that is causal gives at every row what it would give if the later rows were not there. So
the queries of one user read one window, each up to its own end. Where that would take more than the
newest `max_history` events the windows move on in steps: a query then reads all but a step of the
newest `max_history` events at least. Reads the arrays of `hpgr.data.log`. Imports numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpgr.data.histories import Histories, bounded, runs
from hpgr.data.log import EventLog

STEPS = 8  # to a window, of those who judge; a step is the events that a query may lack


@dataclass(frozen=True)
class SharedWindows:
    """W windows over the queries of a log, which are sorted by user and end.

    Window w holds the rows `first[w] : end[w]` of the log and is read by the queries
    `bounds[w] : bounds[w + 1]`; `request_time` is the newest of theirs. All int64, [W] but for
    `bounds` [W + 1].
    """

    first: np.ndarray
    end: np.ndarray
    bounds: np.ndarray
    request_time: np.ndarray

    @classmethod
    def of(
        cls,
        log: EventLog,
        user: np.ndarray,
        end: np.ndarray,
        request_time: np.ndarray,
        *,
        max_history: int,
        steps: int = STEPS,
    ) -> SharedWindows:
        """Windows of the queries of `user` [Q], which see the rows before `end` [Q]."""
        step = max(1, max_history // steps)
        depth = end - log.user_offsets[user]
        place = -(-np.maximum(0, depth - max_history) // step)  # 0: the window starts at the user
        new = np.ones(len(user), dtype=bool)
        new[1:] = (np.diff(user) != 0) | (np.diff(place) != 0)
        bounds = np.append(np.flatnonzero(new), len(user))
        last = bounds[1:] - 1
        first = np.maximum(log.user_offsets[user[last]], end[last] - max_history)
        return cls(first, end[last], bounds, np.asarray(request_time, dtype=np.int64)[last])

    def __len__(self) -> int:
        return len(self.first)

    def parts(self, most: int | None = None) -> Iterator[SharedWindows]:
        """Neighbouring windows of at most `most` events; `bounds` stay as they are.

        By default they are as many as memory may hold at a time.
        """
        cost = self.end - self.first + np.diff(self.bounds)
        for part in bounded(cost, queries=len(self), most=most):
            bounds = self.bounds[part.start : part.stop + 1]
            yield SharedWindows(self.first[part], self.end[part], bounds, self.request_time[part])

    @property
    def queries(self) -> slice:
        """The queries that read these windows."""
        return slice(int(self.bounds[0]), int(self.bounds[-1]))

    def visible(self, end: np.ndarray) -> np.ndarray:
        """Number of its window's events that each of `queries` sees, int64; `end` is as in `of`."""
        return end - np.repeat(self.first, np.diff(self.bounds))

    def histories(self, log: EventLog) -> Histories:
        """The events of each window; it asks at the time of its last query."""
        offsets, rows = runs(self.first, self.end - self.first)
        return Histories.gather(log, offsets, rows, self.request_time)
