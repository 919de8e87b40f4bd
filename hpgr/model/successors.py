"""Counted successors of the newest events, added to the scores of the next item: the wide part.

A state is one vector for all that may come; which item came after which is a table, and what a
table says exactly a cosine says roughly. The newest events vote for what followed their items:

    score = cosine + weight * log(1 + 100 * votes)
    votes of j = sum over the newest ten events, the g-th newest of item i, of decay^(g - 1) T(i, j)

T(i, j) is the share of j among what came one to ten events after i in training, a successor g
events later counting decay^(g - 1). Within a session and after a pause the votes have weights of
their own. Wide beside deep: Cheng et al., "Wide & Deep Learning for Recommender Systems", 2016;
here the wide part is counted, and validation chooses its weight. Imports numpy only. Reads and
writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hpgr.data.histories import Histories, runs
from hpgr.data.log import FIRST_ITEM
from hpgr.model.repeat_counts import Pairs, Repeats, after_pause

EVENTS = 10  # newest events that vote, and events after one that are its successors
SCALE = 100.0  # of the votes inside the logarithm: a share of a hundredth counts log 2


@dataclass(frozen=True)
class SuccessorTable:
    """Shares of successors, row by row: those of item i are offsets[i]:offsets[i + 1].

    `offsets` int64 [V + 1], `item` int64 and `share` float32 [entries], `decay` above.
    """

    offsets: np.ndarray
    item: np.ndarray
    share: np.ndarray
    decay: float

    @classmethod
    def count(
        cls, user: np.ndarray, item: np.ndarray, num_items: int, *, decay: float, most: int
    ) -> SuccessorTable:
        """Count the successors of every item.

        Args:
            user: of each event, int64 [E]; the events of a user are neighbours, in order of time.
            item: of each event, int64 [E]; reserved ids have no successors and are none.
            num_items: V.
            decay: see above.
            most: successors kept of an item, those with the greatest shares.
        """
        keys: list[np.ndarray] = [np.zeros(0, np.int64)]
        votes: list[np.ndarray] = [np.zeros(0)]
        for gap in range(1, min(EVENTS + 1, len(item))):
            one, two = item[:-gap], item[gap:]
            pair = (user[:-gap] == user[gap:]) & (np.minimum(one, two) >= FIRST_ITEM)
            key, count = np.unique(one[pair] * num_items + two[pair], return_counts=True)
            keys.append(key)
            votes.append(count * decay ** (gap - 1))
        key, place = np.unique(np.concatenate(keys), return_inverse=True)
        vote = np.bincount(place, np.concatenate(votes), minlength=len(key))
        row, successor = np.divmod(key, num_items)
        share = vote / np.bincount(row, vote, minlength=num_items)[row]
        order = np.lexsort((successor, -share, row))
        start = np.searchsorted(row, np.arange(num_items))
        kept = np.sort(order[np.arange(len(row)) - start[row] < most])
        return cls(
            np.searchsorted(row[kept], np.arange(num_items + 1)).astype(np.int64),
            successor[kept],
            share[kept].astype(np.float32),
            decay,
        )

    def votes(self, past: Histories) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sum the votes by query and item.

        Returns:
            query, item and votes of every pair that has any, ordered; int64, int64 and float64
            [pairs].
        """
        newest = past.last(EVENTS)
        length, num_items = newest.length, len(self.offsets) - 1
        age = np.repeat(newest.offsets[1:], length) - 1 - np.arange(newest.offsets[-1])
        query = np.repeat(np.arange(len(newest)), length)
        first, end = self.offsets[newest.item], self.offsets[newest.item + 1]
        _, place = runs(first, end - first)
        event = np.repeat(np.arange(len(age)), end - first)
        vote = self.share[place] * float(self.decay) ** age[event]
        pair, summed = np.unique(query[event] * num_items + self.item[place], return_inverse=True)
        return *np.divmod(pair, num_items), np.bincount(summed, vote, minlength=len(pair))


class Successors(NamedTuple):
    """Weights of the votes, in units of the cosine, and the table they are read from.

    `weight_after_pause` is for a request more than `gap_s` seconds after the newest event.
    """

    table: SuccessorTable | None = None
    weight: float = 0.0
    weight_after_pause: float = 0.0
    gap_s: int = 0

    @property
    def idle(self) -> bool:
        """True if no score changes."""
        return self.table is None or not (self.weight or self.weight_after_pause)

    def pairs(self, past: Histories) -> Pairs:
        """Amounts that the votes of `past` add, each pair once."""
        if self.table is None:
            return Pairs.of([])
        pause = after_pause(past, self.gap_s)
        weight = np.where(pause, self.weight_after_pause, self.weight)
        asked = np.flatnonzero(weight)
        query, item, votes = self.table.votes(past.take(asked))
        query = asked[query]
        return Pairs(query, item, weight[query] * np.log1p(SCALE * votes))


class Additions(NamedTuple):
    """Additions to the cosines of the next item."""

    repeats: Repeats = Repeats()
    successors: Successors = Successors()

    @property
    def idle(self) -> bool:
        """True if no score changes."""
        return self.repeats.idle and self.successors.idle

    def pairs(self, past: Histories) -> Pairs:
        """Amounts that are added for `past`; a pair may come twice, once from each part."""
        parts = (self.repeats, self.successors)
        return Pairs.of([one.pairs(past) for one in parts if len(past.item) and not one.idle])

    def add(self, scores: np.ndarray, past: Histories) -> np.ndarray:
        """Add all of it to `scores` [Q, V], in place."""
        return self.pairs(past).add(scores)
