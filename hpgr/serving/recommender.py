"""From histories to recommendations: the one core of batch scoring, HTTP and MLflow's server.

An answer needs no user id, so that new users are answered like all others. It is made in
three steps: the N nearest items of the catalogue by dot product (retrieval head), the same N in the
order that blends nearness with the predicted probability of a positive event (ranking head; see
`hpgr.evaluation.blend`), the best k of them. Where there is no history to be near to, the N are the
most popular items of training, and p(next) is an item's share of its events, one added to each.

The network reads the newest `max_history` events; everything ever seen is left out of the answer
(where the model was judged so). Reads a bundle (`hpgr.registry.bundle`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from hpgr.config import LARGEST_LIKE_WEIGHT
from hpgr.data.histories import Histories
from hpgr.data.id_map import read_indices
from hpgr.data.log import FIRST_ITEM, UNKNOWN
from hpgr.evaluation.blend import Blend
from hpgr.evaluation.model_protocols import RankingModel
from hpgr.registry.bundle import NO_TEMPERATURE, Serving, check_bundle
from hpgr.runtime import UserError
from hpgr.serving.best_items import Best, Found, Wanted
from hpgr.serving.item_index import ItemIndex
from hpgr.serving.joint_finder import JointFinder
from hpgr.serving.request import Request, encode
from hpgr.terminal import short, shown

logger = logging.getLogger(__name__)

Source = Literal["history", "popular"]  # where an answer's candidates came from
NEAREST: Source = "history"
POPULAR: Source = "popular"
SHOWN_REASON = 200  # characters
PROBED = 10  # items of an answer that is tried out
PROBES, PROBE_EVENTS = 128, 20  # made-up histories that choose an index' cells
UNHEARD_OF = "\0 no such name"  # as an item's or action's external id


@dataclass(frozen=True)
class Item:
    """One row of the catalogue: index, external id, title and its number of training events."""

    index: int
    item_id: str
    title: str
    train_events: int


@dataclass(frozen=True)
class Anchor:
    """A history item that the preference signals picked; the weights of one list sum to 1."""

    item_id: str
    title: str
    weight: float


@dataclass(frozen=True)
class Recommended:
    """One item: `similarity` retrieved it, and with `score` (a probability) placed it.

    `score` is None for a model trained without its ranking head: similarity alone decides.
    `similarity` is None where popularity retrieved it. `anchors`, heaviest first, are what the
    network picked from the history to place this item; without a ranking head, the answer's own.
    """

    item_id: str
    title: str
    score: float | None
    similarity: float | None
    anchors: list[Anchor]


@dataclass(frozen=True)
class Answer:
    """Items, best first, and the history items by which all of them were found, heaviest first.

    `source` says where the candidates came from (history | popular), `unknown_items` how many
    events have an item that the model was not trained with.
    """

    items: list[Recommended]
    anchors: list[Anchor]
    source: Source
    unknown_items: int


class Recommender:
    """A scorer with the vocabulary and the rules it was trained with; many threads may ask it."""

    def __init__(
        self, scorer: RankingModel, items: Sequence[Item], actions: dict[str, int], serving: Serving
    ) -> None:
        """`actions`: name to index."""
        self.scorer, self.serving, self.actions = scorer, serving, actions
        self.item = {item.item_id: item.index for item in items}
        self.names = {item.index: (item.item_id, item.title) for item in items}
        self.popularity = np.zeros(max(self.names, default=UNKNOWN) + 1, dtype=np.float32)
        self.popularity[[item.index for item in items]] = [item.train_events for item in items]
        self.finder = JointFinder(scorer, serving, self.popularity)

    @classmethod
    def load(cls, bundle: Path, *, device: str) -> Recommender:
        """Read the bundle folder; `device` is auto, cpu or cuda.

        Raises:
            UserError: a file of the bundle is missing or wrong, or it answers no request.
        """
        from hpgr.model.scoring import Scorer

        serving = check_bundle(bundle)
        columns = ["item", "item_id", "title", "train_events"]
        items = pq.read_table(bundle / "items.parquet", columns=columns)
        rows = zip(*(items[name].to_pylist() for name in columns), strict=True)
        recommender = cls(
            Scorer.load(bundle / "model", device),
            [Item(index, item_id, title or item_id, n) for index, item_id, title, n in rows],
            read_indices(bundle, "actions"),
            serving,
        )
        recommender.try_out()
        return recommender

    def try_out(self) -> None:
        """Answer a known item, an unknown one and a newcomer, as a server will have to.

        Raises:
            UserError: an answer is empty, or holds what is no number.
        """
        known, action = next(iter(self.item)), next(iter(self.actions), None)
        at = self.serving.gap_s + 1
        asked = [
            Request(at, [known], [0], [action]),
            Request(at, [known, UNHEARD_OF], [0, at], [UNHEARD_OF, action]),
            Request(at, [], []),
        ]
        for answer in self.recommend(asked, k=PROBED):
            unscored = any(item.score is None for item in answer.items)
            far = answer.source == NEAREST and any(i.similarity is None for i in answer.items)
            if far or (self.serving.ranked and unscored):
                raise UserError("its answer to a request holds scores that are no numbers")
            # Of two items one may be left out as seen; of one alone, none is left.
            if not answer.items and len(self.item) > 1:
                raise UserError("it answers a request with nothing")

    def use_index(self, recall: float) -> None:
        """Search the catalogue by an index from now on; see `hpgr.serving.item_index`.

        Raises:
            UserError: faiss is not installed.
        """
        random, known = np.random.default_rng(0), list(self.item)
        weight = self.popularity[list(self.item.values())].astype(np.float64) + 1
        drawn = random.choice(len(known), (PROBES, PROBE_EVENTS), p=weight / weight.sum())
        times = [60 * n for n in range(PROBE_EVENTS)]
        asked = [Request(times[-1], [known[i] for i in row], times) for row in drawn.tolist()]
        histories = encode(asked, self.item, self.actions, gap_s=self.serving.gap_s)
        read = self.scorer.read(histories.last(self.serving.max_history))
        states = read.states()
        assert states is not None  # no history is empty
        items = read.items()
        index = ItemIndex(items)
        found = index.tune(states, self.serving.retrieve, recall)
        logger.info(
            "index of %d items: %d of %d cells hold %.3f of the nearest %d",
            *(len(items) - FIRST_ITEM, index.probes, index.cells, found, self.serving.retrieve),
        )
        self.finder.index = index

    def recommend(
        self,
        requests: Sequence[Request],
        *,
        k: int,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] = (),
        like_weight: float | None = None,
    ) -> list[Answer]:
        """The best `k` items for each request (fewer where fewer are left); see `eligible`.

        `like_weight` is that of `hpgr.evaluation.blend.Blend`; None: as the model was judged.

        Raises:
            UserError: see `hpgr.serving.request.encode`; `k` is no positive number, `like_weight`
                is out of range or means nothing to this model.
        """
        if k < 1:
            raise UserError(f"k is {shown(k)}, expected the number of items to return, at least 1")
        blend = self._blend(like_weight)
        eligible = self.eligible(allow, deny)
        if not requests:
            return []
        histories = encode(requests, self.item, self.actions, gap_s=self.serving.gap_s)
        wanted = Wanted(k, self.serving.remove_history, blend)
        answers: list[Answer] = []
        for part in self.finder.parts(histories):
            asked = histories.take(part)
            answers += self._answers(asked, self.finder.find(asked, wanted, eligible))
        return answers

    def _answers(self, histories: Histories, found: Found) -> Iterator[Answer]:
        """Put names to what was found."""
        read = histories.last(self.serving.max_history)
        best = found.best
        own, each = (self._picked(read, *anchors) for anchors in (found.own, found.each))
        rows = zip(best.item.tolist(), _known(best.score), _known(best.similarity), strict=True)
        for q, (items, scores, similarities) in enumerate(rows):
            recommended = [
                Recommended(*self.names[item], score, similarity, self._shares(*picked))
                for item, score, similarity, *picked in zip(
                    items, scores, similarities, each[0][q], each[1][q], strict=True
                )
                if item >= FIRST_ITEM
            ]
            low, high = histories.offsets[q : q + 2]
            source = NEAREST if high > low else POPULAR
            unknown = int((histories.item[low:high] == UNKNOWN).sum())
            yield Answer(recommended, self._shares(own[0][q], own[1][q]), source, unknown)

    def _blend(self, like_weight: float | None) -> Blend:
        """The order that a request asks for."""
        own = self.serving.blend
        if like_weight is None:
            return own
        if not 0 <= like_weight <= LARGEST_LIKE_WEIGHT:
            raise UserError(
                f"like_weight is {shown(like_weight)}, expected a number from 0 (the order of "
                f"retrieval alone) to {LARGEST_LIKE_WEIGHT:g}; without it, as the model was judged"
            )
        if like_weight > 0 and (not self.serving.ranked or own.temperature is None):
            why = NO_TEMPERATURE if self.serving.ranked else "it was trained without a ranking head"
            raise UserError(
                f"like_weight is {shown(like_weight)}, but the model cannot weigh what is liked: "
                f"{why}. Leave like_weight out"
            )
        return replace(own, like_weight=float(like_weight))

    def eligible(
        self, allow: Sequence[str] | None = None, deny: Sequence[str] = ()
    ) -> np.ndarray | None:
        """Items that may be recommended, bool [num_items], or None for all.

        Args:
            allow: external ids; nothing else is recommended. None allows every item.
            deny: external ids that are never recommended. Ids that the model does not know are
                ignored in both: it cannot recommend them.

        Raises:
            UserError: the model knows no item of `allow`.
        """
        if allow is None and not deny:
            return None
        mask = np.ones(len(self.popularity), dtype=bool)
        if allow is not None:
            known = [self.item[i] for i in allow if i in self.item]
            if not known:
                raise UserError(
                    f"none of the {len(allow)} item ids to allow is in the model's catalogue of "
                    f"{len(self.item)} items ({', '.join(map(short, list(self.item)[:3]))}, ...)"
                )
            mask[:] = False
            mask[known] = True
        mask[[self.item[i] for i in deny if i in self.item]] = False
        return mask

    def best(
        self,
        histories: Histories,
        *,
        k: int,
        eligible: np.ndarray | None = None,
        drop_seen: bool | None = None,
        blend: Blend | None = None,
    ) -> Best:
        """The best `k` items of every query, which may have no event at all.

        Args:
            histories: in the model's ids, everything the asker did, not only what the network
                reads: all of it is left out of the answer.
            k: places, at least 1.
            eligible: see `eligible`.
            drop_seen: leave it out; None: as the model was judged.
            blend: the order; None: as the model was judged.
        """
        drop = self.serving.remove_history if drop_seen is None else drop_seen
        wanted = Wanted(k, drop, blend or self.serving.blend)
        parts = self.finder.parts(histories)
        return Best.of(
            [self.finder.find(histories.take(part), wanted, eligible).best for part in parts]
        )

    def _picked(self, read: Histories, position: np.ndarray, weight: np.ndarray) -> tuple[Any, Any]:
        """Items at the positions [Q, ...] that signals picked, UNKNOWN for none, and weights."""
        first = read.offsets[:-1].reshape(-1, *[1] * (position.ndim - 1))
        there = (position >= 0) & (weight > 0)
        item = np.full(position.shape, UNKNOWN)
        item[there] = read.item[(first + position)[there]]
        return item.tolist(), weight.tolist()

    def _shares(self, items: Sequence[int], weights: Sequence[float]) -> list[Anchor]:
        """Weight of each known item over the places where it was picked."""
        share: dict[int, float] = {}
        for item, weight in zip(items, weights, strict=True):
            if item in self.names:
                share[item] = share.get(item, 0.0) + weight
        total = sum(share.values())
        return [
            Anchor(*self.names[item], weight / total)
            for item, weight in sorted(share.items(), key=lambda pair: -pair[1])
        ]


def load_bundle(bundle: Path, what: str, fix: str) -> Recommender:
    """The bundle on the best device.

    Raises:
        UserError: it cannot be read; one message says so of `what` it is a copy of, and the `fix`.
    """
    try:
        return Recommender.load(bundle, device="auto")
    except Exception as error:  # files of any kind, in any state
        reason = " ".join((str(error) or repr(error)).replace(f"{bundle}/", "").split())
        raise UserError(
            f"{what} cannot be read by this installation ({short(reason, SHOWN_REASON)}): {fix}"
        ) from error


def _known(values: np.ndarray) -> list[list[float | None]]:
    """Numbers of the rows, None for NaN."""
    return [[None if x != x else x for x in row] for row in values.tolist()]
