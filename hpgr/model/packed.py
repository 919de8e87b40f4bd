"""Histories of many users packed into flat rows, as tensors, with the ranges attention needs.

Sessions of one user may interleave. A visit is an unbroken run of rows of one session: where
nothing interleaves, it is the session. Visits follow each other in time, so which of them are
closed at a row is known from the rows before it, while a session may always go on.

Shape legend: B users (queries), T history rows, P visits, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hpgr.data.histories import Histories
from hpgr.data.list_log import NO_PLACE


@dataclass(frozen=True)
class Packed:
    """Flat rows of B histories, oldest event first.

    `first` and `row_end` delimit the causal past of each row (itself included); `user_end` the end
    of its user. `visit` int64 [T] numbers visits over the whole batch; `visit_end` [T] is one past
    the last row of a row's visit, `user_visit` [T] the first visit of its user. `by_session` [T]
    lists the rows session by session, oldest first, or is None where they lie so; `session_first`
    and `session_end` [T] delimit the session of each place in that list. `next_time` is the time of
    the user's next event, the request time at the end.
    """

    offsets: Tensor
    item: Tensor
    action: Tensor
    time: Tensor
    next_time: Tensor
    previous_time: Tensor
    position: Tensor
    first: Tensor
    row_end: Tensor
    user_end: Tensor
    visit: Tensor
    visit_end: Tensor
    user_visit: Tensor
    by_session: Tensor | None
    session_first: Tensor
    session_end: Tensor
    num_visits: int

    @property
    def newest(self) -> Tensor:
        """Rows of the newest event of each history that has one, int64 [at most B]."""
        return self.offsets[1:][self.offsets.diff() > 0] - 1

    def readers(self, rows: Tensor | None = None) -> Readers:
        """Return the history rows, or those of them at `rows`, as causal readers."""
        if rows is None:
            return Readers(self.first, self.row_end, self.next_time, None)
        return Readers(self.first[rows], self.row_end[rows], self.next_time[rows], rows)


@dataclass(frozen=True)
class Readers:
    """Queries of the packed histories, sorted by history; each sees rows `first .. end - 1`.

    `time` is the request time of each; `position` its place among the rows, None where the readers
    are the rows themselves.
    """

    first: Tensor
    end: Tensor
    time: Tensor
    position: Tensor | None


@dataclass(frozen=True)
class Candidates(Readers):
    """C candidates of the packed histories; a candidate stands behind the rows that it sees.

    `place` int64 [C] counts the items shown before each, -1 where that is not known.
    """

    item: Tensor
    place: Tensor


def pack(histories: Histories, device: torch.device) -> Packed:
    """Pack `histories` into tensors on `device`."""
    offsets = np.asarray(histories.offsets, dtype=np.int64)
    length = np.diff(offsets)
    total = int(offsets[-1])
    first = np.repeat(offsets[:-1], length)
    user_end = np.repeat(offsets[1:], length)
    row = np.arange(total)
    starts_user = row == first
    time = np.asarray(histories.timestamp, dtype=np.int64)
    session = np.asarray(histories.session, dtype=np.int64)
    visit, visit_first, visit_end = _runs(starts_user, session)
    order, session_first, session_end = None, visit_first, visit_end
    if (~starts_user[1:] & (np.diff(session) < 0)).any():  # a session may go on after another
        order = np.lexsort((session, first))
        _, session_first, session_end = _runs(starts_user, session[order])
    next_time = np.append(time[1:], 0)
    full = length > 0
    next_time[offsets[1:][full] - 1] = np.asarray(histories.request_time)[full]
    previous_time = np.where(starts_user, time, np.append(0, time[:-1])[:total])

    tensor = partial(_tensor, device=device)
    return Packed(
        offsets=tensor(offsets),
        item=tensor(histories.item),
        action=tensor(histories.action),
        time=tensor(time),
        next_time=tensor(next_time[:total]),
        previous_time=tensor(previous_time),
        position=tensor(row - first),
        first=tensor(first),
        row_end=tensor(row + 1),
        user_end=tensor(user_end),
        visit=tensor(visit),
        visit_end=tensor(visit_end),
        user_visit=tensor(visit[first]),
        by_session=None if order is None else tensor(order),
        session_first=tensor(session_first),
        session_end=tensor(session_end),
        num_visits=int(visit[-1]) + 1 if total else 0,
    )


def _runs(
    starts_user: np.ndarray, session: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of neighbouring rows of one user and session: number, first row, end; each int64 [T]."""
    starts = starts_user.copy()
    starts[1:] |= np.diff(session) != 0
    number = np.cumsum(starts) - 1
    first = np.flatnonzero(starts)
    end = np.append(first[1:], len(starts))
    return number, first[number], end[number]


def place_candidates(
    histories: Histories,
    offsets: np.ndarray,
    item: np.ndarray,
    visible: np.ndarray,
    time: np.ndarray,
    device: torch.device,
    place: np.ndarray | None = None,
) -> Candidates:
    """Make candidates of `item` [C]; those of history b are at offsets[b]:offsets[b + 1].

    Args:
        histories: the histories the candidates belong to.
        offsets: int64 [B + 1].
        item: dense item ids, [C].
        visible: number of its history's oldest events that each candidate sees, [C].
        time: request time of each candidate, seconds, [C].
        device: of the result.
        place: number of items shown before each candidate, -1 not known, [C]; None: none is known.
    """
    place = np.full(len(item), NO_PLACE) if place is None else place
    first = np.repeat(histories.offsets[:-1], np.diff(offsets))
    end = _tensor(first + visible, device)
    return Candidates(
        _tensor(first, device),
        end,
        _tensor(time, device),
        end,
        _tensor(item, device),
        _tensor(place, device),
    )


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)
