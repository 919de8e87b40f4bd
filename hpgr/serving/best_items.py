"""The best items of histories in the model's ids, with the anchors by which they were found.

The network reads each history once: retrieval, ranking and anchors ask that one reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hpgr.data.histories import Histories, bounded, offsets_of
from hpgr.data.log import FIRST_ITEM
from hpgr.evaluation.blend import Blend
from hpgr.evaluation.model_protocols import Answering, RankingModel
from hpgr.metrics import removed_pairs, take_top
from hpgr.model.repeat_counts import Pairs
from hpgr.registry.bundle import Serving
from hpgr.serving.item_index import ItemIndex

CELLS = 1 << 22  # scores held at a time, 16 MiB in float32
ITEMS_SCORED = 1 << 16  # items whose scores are held at a time
EVENTS_READ = 1 << 15  # events whose readings are held at a time, a few KiB each
SEEN_AT_MOST = 1000  # items to leave out of an answer from an index, which finds as many more


class Best(NamedTuple):
    """The best K items of Q queries in the model's ids.

    `item` int64 [Q, K], -1 where fewer were left; `score` and `similarity` float32 [Q, K], NaN
    where `Recommended` says None.
    """

    item: np.ndarray
    score: np.ndarray
    similarity: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[Best]) -> Best:
        """The answers of several parts of the queries, one after the other."""
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class Found(NamedTuple):
    """The best items of Q queries and what they were found by.

    `own` are the positions [Q, A] of each query's anchors in what the network read of its history,
    -1 for none, and their weights [Q, A]; `each` those of its K items, [Q, K, A].
    """

    best: Best
    own: tuple[np.ndarray, np.ndarray]
    each: tuple[np.ndarray, np.ndarray]

    def take(self, queries: slice) -> Found:
        """The part of some of the queries."""
        best = Best(*(column[queries] for column in self.best))
        own, each = (
            (position[queries], weight[queries]) for position, weight in (self.own, self.each)
        )
        return Found(best, own, each)


class Wanted(NamedTuple):
    """An answer as it is asked for: places, whether what was met is left out, and the order."""

    k: int
    drop_seen: bool
    blend: Blend


class Finder:
    """Finds items for histories; `popularity` [num_items] stands in where there is no history."""

    def __init__(self, scorer: RankingModel, serving: Serving, popularity: np.ndarray) -> None:
        self.scorer, self.serving, self.popularity = scorer, serving, popularity
        self.index: ItemIndex | None = None  # searches instead of scoring every item

    def parts(self, histories: Histories) -> Iterator[slice]:
        """Slices of queries whose scores and readings fit the memory set aside."""
        read = np.minimum(histories.length, self.serving.max_history)
        size = max(1, CELLS // min(len(self.popularity), ITEMS_SCORED))
        return bounded(read, queries=size, most=EVENTS_READ)

    def find(
        self, histories: Histories, wanted: Wanted, eligible: np.ndarray | None = None
    ) -> Found:
        """The best items for one of the `parts`; see `Recommender.best`."""
        k, drop_seen, blend = wanted
        read, empty = histories.last(self.serving.max_history), histories.length == 0
        asked = self.scorer.read(read)
        own = _no_anchors(len(histories), 0)
        if not empty.all():
            own = _placed(~empty, *asked.explain())
        removed = removed_pairs(histories.offsets, histories.item) if drop_seen else None
        places = max(k, self.serving.retrieve)
        found = None
        if self.index is not None and eligible is None:
            found = self._from_index(self.index, asked, removed, places)
        item, nearness = found or self._nearest(asked, empty, removed, eligible, places)
        if blend.retrieval_only:
            item, nearness = item[:, :k], nearness[:, :k]
        filled = item >= FIRST_ITEM
        similarity = np.where(~filled | empty[:, None], np.float32(np.nan), nearness)
        score = np.full(item.shape, np.nan, dtype=np.float32)
        each = tuple(np.repeat(one[:, None], item.shape[1], axis=1) for one in own)
        if self.serving.ranked and filled.any():
            offsets = offsets_of(filled.sum(axis=1))
            score[filled], *anchors = asked.rank(offsets, item[filled])
            each = _placed(filled, *anchors)
        best = Best(item, score, similarity)
        if not blend.retrieval_only:
            log_next = blend.log_next(nearness)
            log_next[empty] = np.log1p(np.maximum(nearness[empty], 0))
            value = blend.scores(log_next, score)
            # Ties keep retrieval's order; empty places, which have no score, come last.
            order = np.argsort(-np.where(np.isnan(value), -np.inf, value), axis=1, kind="stable")
            order = order[:, :k]
            best = Best(*(np.take_along_axis(column, order, axis=1) for column in best))
            each = tuple(np.take_along_axis(one, order[:, :, None], axis=1) for one in each)
        return Found(best, own, (each[0], each[1]))

    def _from_index(
        self,
        index: ItemIndex,
        asked: Answering,
        removed: tuple[np.ndarray, np.ndarray] | None,
        places: int,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """As `_nearest`, most of them; None where a history is empty or too much was met.

        An item is among the best `places` by score if it is among as many by cosine, or something
        is added to it: all that stand above an item by cosine alone stand above it by score too,
        as no addition is negative. So the index adds no error of its own to the additions.
        """
        state, width = asked.states(), len(self.popularity)
        if state is None:
            return None
        query, gone = removed or (np.zeros(0, np.int64),) * 2
        seen = int(np.bincount(query, minlength=1).max())
        if seen > SEEN_AT_MOST:
            return None
        near, cosine = index.search(state, places + seen)
        asks, place = np.nonzero(near >= 0)
        found = Pairs(asks, near[asks, place], cosine[asks, place].astype(np.float64))
        extra = asked.added.summed(width)
        own = np.einsum("ij,ij->i", state[extra.query], asked.items()[extra.item])
        missed = np.isin(extra.key(width), found.key(width), invert=True)
        found = Pairs.of([found, extra, extra._replace(added=own).take(missed)]).summed(width)
        found = found.take(np.isin(found.key(width), query * width + gone, invert=True))
        found = found.take(np.lexsort((found.item, -found.added, found.query)))
        rank = np.arange(len(found.query)) - np.searchsorted(found.query, found.query)
        found, rank = found.take(rank < places), rank[rank < places]
        item = np.full((len(state), places), -1, dtype=np.int64)
        score = np.full(item.shape, -np.inf, dtype=np.float32)
        item[found.query, rank], score[found.query, rank] = found.item, found.added
        return item, score

    def _nearest(
        self,
        asked: Answering,
        empty: np.ndarray,
        removed: tuple[np.ndarray, np.ndarray] | None,
        eligible: np.ndarray | None,
        places: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The items nearest to each query, -1 where fewer are left, and how near, [Q, places].

        The catalogue is scored block by block. An `empty` history is near to what is popular.
        """
        items, nearness = [], []
        for start in range(0, len(self.popularity), ITEMS_SCORED):
            stop = min(start + ITEMS_SCORED, len(self.popularity))
            if empty.all():
                scores = np.empty((len(empty), stop - start), dtype=np.float32)
            else:
                scores = asked.retrieve(slice(start, stop))
            scores[empty] = self.popularity[start:stop]
            if eligible is not None:
                scores[:, ~eligible[start:stop]] = -np.inf
            here = None
            if removed is not None:
                query, item = removed
                inside = (start <= item) & (item < stop)
                here = query[inside], item[inside] - start
            best, near = take_top(scores, here, places, first=max(0, FIRST_ITEM - start))
            items.append(np.where(best < 0, -1, best + start))
            nearness.append(near)
        item, near = np.concatenate(items, axis=1), np.concatenate(nearness, axis=1)
        if len(items) > 1:  # equal scores stay in order of item id
            order = np.argsort(-near, axis=1, kind="stable")[:, :places]
            item, near = (np.take_along_axis(one, order, axis=1) for one in (item, near))
        return item, near


def _placed(
    where: np.ndarray, position: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Anchors [N, A] at the N true places of a mask of any shape, none at the others."""
    found = _no_anchors(where.shape, position.shape[1])
    found[0][where], found[1][where] = position, weight
    return found


def _no_anchors(shape: int | tuple[int, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    size = (*np.atleast_1d(shape).tolist(), count)
    return np.full(size, -1, dtype=np.int64), np.zeros(size, dtype=np.float32)
