"""Counts of what a user took before, added to the scores of the next item.

A network's states say what resembles a history; that the same item was taken in five of the last
six sessions is a count, which cosines of unit vectors hold badly. It is added to the score:

    score = cosine + weight * log(1 + sum over the user's sessions with the item of decay ** age)

where `age` counts the later sessions in the history. Within a session people go on to other items,
after a pause they come back to what they are used to: each has a weight and a decay of its own.
Source of the count: P-TopFreq of Li et al., "A Next Basket Recommendation Reality Check", ACM TOIS
41(4), 2023; of the decay: Hu et al., "Modeling Personalized Item Frequency Information for
Next-basket Recommendation", SIGIR 2020. Imports numpy only. Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hpgr.data.histories import Histories, runs
from hpgr.data.log import FIRST_ITEM


class Repeats(NamedTuple):
    """Weight of the count, in units of the cosine, and what a session keeps per later one.

    The first pair is for a request within a session, the second for one that comes more than
    `gap_s` seconds after the newest event.
    """

    weight: float = 0.0
    decay: float = 1.0
    weight_after_pause: float = 0.0
    decay_after_pause: float = 1.0
    gap_s: int = 0

    @property
    def idle(self) -> bool:
        """True if no score changes."""
        return not (self.weight or self.weight_after_pause)

    def pairs(self, past: Histories) -> Pairs:
        """Amounts that the counts of `past` add, each pair once."""
        pause = after_pause(past, self.gap_s)
        parts = []
        for weight, decay, asked in (
            (self.weight, self.decay, np.flatnonzero(~pause)),
            (self.weight_after_pause, self.decay_after_pause, np.flatnonzero(pause)),
        ):
            if weight and len(asked):
                query, item, count = session_counts(past.take(asked), decay)
                parts.append(Pairs(asked[query], item, weight * np.log1p(count)))
        return Pairs.of(parts)


class Pairs(NamedTuple):
    """Amounts that are added to the scores of some items: query, item, added [pairs].

    int64, int64 and float64; no amount is negative.
    """

    query: np.ndarray
    item: np.ndarray
    added: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[Pairs]) -> Pairs:
        """Those of several parts, one after the other."""
        if not parts:
            return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def add(self, scores: np.ndarray, items: slice = slice(None)) -> np.ndarray:
        """Add them to `scores` [Q, part] of a part of the catalogue, in place."""
        start = items.start or 0
        inside = (start <= self.item) & (self.item < start + scores.shape[1])
        where = self.query[inside], self.item[inside] - start
        np.add.at(scores, where, self.added[inside].astype(scores.dtype))
        return scores

    def summed(self, num_items: int) -> Pairs:
        """The same amounts with each pair once, ordered by query and item."""
        key, place = np.unique(self.key(num_items), return_inverse=True)
        added = np.bincount(place, self.added, minlength=len(key))
        return Pairs(*np.divmod(key, num_items), added)

    def key(self, num_items: int) -> np.ndarray:
        """One number for query and item, int64 [pairs]."""
        keys: np.ndarray = self.query * num_items + self.item
        return keys

    def take(self, places: np.ndarray) -> Pairs:
        """Some of them, by places or by a mask."""
        return Pairs(*(column[places] for column in self))


def after_pause(past: Histories, gap_s: int) -> np.ndarray:
    """Mark the queries that ask more than `gap_s` seconds after their newest event, bool [Q]."""
    full = past.length > 0
    newest = past.timestamp[np.where(full, past.offsets[1:] - 1, 0)]
    marked: np.ndarray = full & (past.request_time - newest > gap_s)
    return marked


def session_counts(past: Histories, decay: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum `decay ** age` over the sessions that hold an item, by query and item.

    Returns:
        query, item and count of every pair, ordered; int64, int64 and float64 [pairs]. Reserved ids
        are left out.
    """
    keep = past.item >= FIRST_ITEM
    query = np.repeat(np.arange(len(past)), past.length)[keep]
    session, item = past.session[keep].astype(np.int64), past.item[keep].astype(np.int64)
    sessions, width = int(session.max(initial=0)) + 1, int(item.max(initial=0)) + 1
    held, item = np.divmod(np.unique((query * sessions + session) * width + item), width)
    query, session = np.divmod(held, sessions)  # ascending, so that the newest is the last
    newest = session[np.searchsorted(query, query, side="right") - 1]
    pair, place = np.unique(query * width + item, return_inverse=True)
    count = np.bincount(place, weights=float(decay) ** (newest - session), minlength=len(pair))
    return *np.divmod(pair, width), count


def prefixes(
    histories: Histories, rows: np.ndarray, request_time: np.ndarray | None = None
) -> Histories:
    """One query for each of `rows` int64 [Q] of the flat arrays: it and what came before it.

    It asks at `request_time` int64 [Q]; None: when its history does.
    """
    owner = np.searchsorted(histories.offsets, rows, side="right") - 1
    start = histories.offsets[owner]
    if request_time is None:
        request_time = histories.request_time[owner]
    return Histories.gather(histories, *runs(start, rows + 1 - start), request_time)
