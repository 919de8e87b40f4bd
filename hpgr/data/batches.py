"""Training batches: jagged windows of the memory-mapped log, in a reproducible order.

The batches of an epoch depend on (seed, epoch) alone, so a run resumes in mid-epoch from one
integer. There is no padding: a batch has as many users as fit a token budget. Reads the arrays of
`hpgr.data.log` and, where they are given, of `hpgr.data.list_log`, and copies only the rows of the
current batch. Imports numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hpgr.data.histories import Histories, runs
from hpgr.data.list_log import NO_PLACE, ListLog
from hpgr.data.log import TRAIN, EventLog
from hpgr.data.training_lists import TrainingLists
from hpgr.runtime import UserError

BASKET_ITEMS = 8  # drawn of each next session: a large one counts as much as a small one
LONGEST_BASKET = 512  # of a next session, so many events at most are drawn from
HIDDEN = 0.5  # share of drawn lists whose places are left out, as serving does not know them


@dataclass(frozen=True)
class CandidateRows:
    """Candidates of a batch: jagged by `offsets` int64 [B + 1], C in all.

    `visible` counts the oldest events of the history that happened strictly before `time`. `place`
    counts the items that were shown before the candidate, -1 where that is not known, as it is
    where `place` is None.
    """

    offsets: np.ndarray
    item: np.ndarray
    visible: np.ndarray
    time: np.ndarray
    label: np.ndarray
    place: np.ndarray | None = None

    @classmethod
    def at_request(
        cls,
        histories: Histories,
        offsets: np.ndarray,
        item: np.ndarray,
        place: np.ndarray | None = None,
    ) -> CandidateRows:
        """Candidates of each query at its request time, which see its whole history."""
        count = np.diff(offsets)
        return cls(
            offsets=np.asarray(offsets),
            item=item,
            visible=np.repeat(histories.length, count),
            time=np.repeat(histories.request_time, count),
            label=np.zeros(len(item), np.int8),
            place=place,
        )


@dataclass(frozen=True)
class NextSessions:
    """Items of the sessions that follow R of a batch's events, which end one.

    `row` int64 [R] are places among the T events; `item` [R, BASKET_ITEMS] is drawn evenly from
    the events of the next session.
    """

    row: np.ndarray
    item: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Histories of B users, the item that follows each of their T events, and candidates.

    Candidates are events of these users or, behind their B histories, of Q shown lists with a
    history each: `target` [T] is then of the first T rows.
    """

    histories: Histories
    target: np.ndarray
    candidates: CandidateRows | None
    next_sessions: NextSessions | None = None


class TrainingWindows:
    """Windows over each user's training events, batched by token budget.

    A user with more than `max_history` + 1 training events contributes its newest window or, with
    `random_windows` in every other epoch, one with a random end. With `lists`, candidates are the
    items of training lists.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        max_history: int,
        batch_tokens: int,
        num_candidates: int | None,
        random_windows: bool,
        seed: int,
        lists: ListLog | None = None,
        baskets: bool = False,
    ) -> None:
        """`num_candidates` is per window, None for each of its events, 0 for none.

        With `lists` it is not read: a batch holds lists of as many tokens again. With `baskets` a
        batch holds items of next sessions.

        Raises:
            UserError: no user has two training events.
        """
        self.log, self.max_history, self.seed = log, max_history, seed
        self.batch_tokens, self.num_candidates = batch_tokens, num_candidates
        self.random_windows, self.baskets = random_windows, baskets
        start = np.asarray(log.user_offsets[:-1])
        train_before = np.concatenate([[0], np.cumsum(np.asarray(log.split) == TRAIN)])
        # Training events come first within a user in every split, so they are one run of rows.
        count = train_before[log.user_offsets[1:]] - train_before[start]
        users = np.flatnonzero(count >= 2)
        if not len(users):
            raise UserError(
                "no user has two training events: nothing to learn an order from; "
                "lower sessionize.min_item_events or bring a longer log"
            )
        self.start, self.end = start[users], (start + count)[users]
        self.length = np.minimum(self.end - self.start - 1, max_history)
        self.tokens_per_epoch = int(self.length.sum())
        self.batches_per_epoch = -(-self.tokens_per_epoch // batch_tokens)
        self.lists: TrainingLists | None = None
        if lists is not None:
            self.lists = TrainingLists(
                log,
                lists,
                max_history=max_history,
                batch_tokens=batch_tokens,
                num_batches=self.batches_per_epoch,
            )

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Window numbers of each batch of `epoch`."""
        order = self._random(epoch, 0).permutation(len(self.start))
        before = np.cumsum(self.length[order]) - self.length[order]
        number = before // self.batch_tokens
        return np.split(order, np.flatnonzero(np.diff(number)) + 1)

    def batch(self, windows: np.ndarray, epoch: int, index: int) -> Batch:
        """Batch number `index` of `epoch`, made of `windows` (one entry of `plan`)."""
        random = self._random(epoch, index + 1)
        length = self.length[windows]
        last = self.end[windows] - 1  # row of the final target
        spare = last - length - self.start[windows]
        if self.random_windows:
            moved = random.integers(0, 2, len(windows)) * random.integers(0, spare + 1)
            last = last - moved
        first = last - length
        offsets, rows = runs(first, length)
        log = self.log
        histories = Histories.gather(log, offsets, rows, log.timestamp[last])
        batch = Batch(histories, log.item[rows + 1], None)
        if self.lists is not None:
            batch = self._with_lists(batch, self.lists, random)
        elif self.num_candidates != 0:
            candidates = self._candidates(histories, first, length, random)
            batch = replace(batch, candidates=candidates)
        if self.baskets:
            end = np.repeat(self.end[windows], length)
            batch = replace(batch, next_sessions=self._next_sessions(rows, end, random))
        return batch

    def _next_sessions(
        self, rows: np.ndarray, end: np.ndarray, random: np.random.Generator
    ) -> NextSessions:
        """Draw from the sessions behind `rows` of the log [T], of users who train up to `end` [T].

        A session that begins in the second of the row before is not asked for there.
        """
        log = self.log
        new = log.session[rows + 1] != log.session[rows]
        ends = np.flatnonzero(new & (log.timestamp[rows + 1] > log.timestamp[rows]))
        first = rows[ends] + 1
        offsets, ahead = runs(first, np.minimum(end[ends] - first, LONGEST_BASKET))
        other = log.session[ahead] != np.repeat(log.session[first], np.diff(offsets))
        # Up to the first event of another session: there, the count of them is still 0.
        before = np.append(0, np.cumsum(other))
        own = before[1:] == np.repeat(before[offsets[:-1]], np.diff(offsets))
        size = np.diff(np.append(0, np.cumsum(own))[offsets])
        drawn = random.random((len(first), BASKET_ITEMS)) * size[:, None]
        return NextSessions(ends, log.item[first[:, None] + drawn.astype(np.int64)])

    def _with_lists(self, batch: Batch, lists: TrainingLists, random: np.random.Generator) -> Batch:
        """Add drawn lists, whose items see all of their list's own history."""
        past, offsets, rows = lists.draw(random)
        size = np.diff(offsets)
        hidden = np.repeat(random.random(len(size)) < HIDDEN, size)
        candidates = CandidateRows(
            offsets=np.concatenate([np.zeros(len(batch.histories), dtype=np.int64), offsets]),
            item=lists.lists.item[rows],
            visible=np.repeat(past.length, size),
            time=np.repeat(past.request_time, size),
            label=lists.lists.label[rows],
            place=np.where(hidden, NO_PLACE, lists.lists.place[rows]),
        )
        histories = Histories.joined([batch.histories, past])
        return replace(batch, histories=histories, candidates=candidates)

    def _candidates(
        self,
        histories: Histories,
        first: np.ndarray,
        length: np.ndarray,
        random: np.random.Generator,
    ) -> CandidateRows:
        """Labelled events of each window, its final target included: all or some drawn evenly."""
        log, num = self.log, self.num_candidates
        if num is None:
            offsets, rows = runs(first, length + 1)
        else:
            offsets = np.arange(len(first) + 1) * num
            drawn = (random.random((len(first), num)) * (length + 1)[:, None]).astype(np.int64)
            rows = (first[:, None] + np.sort(drawn)).ravel()
        time = log.timestamp[rows]
        query = np.repeat(np.arange(len(first)), np.diff(offsets))
        return CandidateRows(
            offsets=offsets,
            item=log.item[rows],
            visible=events_before(histories, query, time),
            time=time,
            label=log.label[rows],
        )

    def _random(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, stream])


def events_before(histories: Histories, query: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Number of events of history `query` [C] strictly before `time` [C]; int64 [C].

    Events at the moment of the request are not visible: a tie must not leak.
    """
    offsets, stamps = histories.offsets, np.asarray(histories.timestamp)
    low, high = offsets[query], offsets[query + 1]
    while np.any(low < high):
        middle = (low + high) // 2
        before = stamps[np.minimum(middle, len(stamps) - 1)] < time
        low, high = (
            np.where((low < high) & before, middle + 1, low),
            np.where((low < high) & ~before, middle, high),
        )
    return low - offsets[query]
