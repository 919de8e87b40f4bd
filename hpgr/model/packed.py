"""Histories of many users packed into flat rows, as tensors, with the ranges attention needs.

Shape legend: B users (queries), T history rows, P sessions, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpgr.data.log import Histories


@dataclass(frozen=True)
class Packed:
    """Flat rows of B histories, oldest event first.

    `first` and `row_end` delimit the causal past of each row (itself included); `user_end` the end
    of its user. `session` int64 [T] numbers sessions over the whole batch; `session_first` and
    `session_end` [T] delimit a row's session in rows, `user_session` [T] is the first session of
    its user. `next_time` is the time of the user's next event, the request time at the end.
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
    session: Tensor
    session_first: Tensor
    session_end: Tensor
    user_session: Tensor
    num_sessions: int

    @property
    def newest(self) -> Tensor:
        """Row of the newest event of each history that has one, int64 [at most B]."""
        return self.offsets[1:][self.offsets.diff() > 0] - 1


@dataclass(frozen=True)
class Candidates:
    """C candidates of the packed histories, sorted by history.

    A candidate sees rows `first .. last - 1`; `time` is its request time.
    """

    item: Tensor
    first: Tensor
    last: Tensor
    time: Tensor


def pack(histories: Histories, device: torch.device) -> Packed:
    """Tensors of `histories` on `device`."""
    offsets = np.asarray(histories.offsets, dtype=np.int64)
    length = np.diff(offsets)
    total = int(offsets[-1])
    first = np.repeat(offsets[:-1], length)
    user_end = np.repeat(offsets[1:], length)
    row = np.arange(total)
    starts_user = row == first
    time = np.asarray(histories.timestamp, dtype=np.int64)
    session = np.asarray(histories.session, dtype=np.int64)
    starts_session = starts_user.copy()
    starts_session[1:] |= session[1:] != session[:-1]
    number = np.cumsum(starts_session) - 1
    session_first = np.flatnonzero(starts_session)
    session_end = np.append(session_first[1:], total)
    next_time = np.append(time[1:], 0)
    full = length > 0
    next_time[offsets[1:][full] - 1] = np.asarray(histories.request_time)[full]
    previous_time = np.where(starts_user, time, np.append(0, time[:-1])[:total])

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)

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
        session=tensor(number),
        session_first=tensor(session_first[number]),
        session_end=tensor(session_end[number]),
        user_session=tensor(number[first]),
        num_sessions=len(session_first),
    )


def place_candidates(
    histories: Histories,
    offsets: np.ndarray,
    item: np.ndarray,
    visible: np.ndarray,
    time: np.ndarray,
    device: torch.device,
) -> Candidates:
    """Candidates `item` [C], those of history b at offsets[b]:offsets[b + 1].

    Args:
        histories: the histories the candidates belong to.
        offsets: int64 [B + 1].
        item: dense item ids, [C].
        visible: how many of its history's oldest events each candidate sees, [C].
        time: request time of each candidate, seconds, [C].
        device: of the result.
    """
    first = np.repeat(histories.offsets[:-1], np.diff(offsets))

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)

    return Candidates(tensor(item), tensor(first), tensor(first + visible), tensor(time))
