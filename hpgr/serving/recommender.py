"""From events and a request time to recommendations; the same code offline and online.

A request holds what a caller knows: outside item ids, times, actions. It needs no user id, so that
users never seen get answers like everybody else. The answer is made in three steps: the N nearest
items of the catalogue by dot product (retrieval head), the same N ordered by predicted probability
of a positive event (ranking head), the best k of them. Reads a bundle (`hpgr.registry.bundle`).

Rules, each the offline rule of the sessionize stage:
- events are sorted by time, stably: events of one second keep the caller's order;
- an item or action that the model was not trained with becomes the unknown id;
- a new session starts where the caller's session id changes or, without one, after `gap_s`;
- the newest `max_history` events count.
An event after the request time is refused, not dropped: it is a wrong clock or a wrong unit, and
silence would hide it. An event in the second of the request is history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq

from hpgr.data.log import FIRST_ITEM, UNKNOWN, Histories
from hpgr.evaluation.metrics import removed_pairs, top_items
from hpgr.registry.bundle import Serving
from hpgr.runtime import UserError, read_json

LATEST_SECONDS = 100_000_000_000  # the year 5138; milliseconds of our time lie above
NO_ACTION = 0


@dataclass(frozen=True)
class Request:
    """One question: the asker's events (equal lengths, any order) and when it is asked (UTC, s)."""

    request_time: int | None
    item_ids: Sequence[str]
    timestamps: Sequence[int]
    actions: Sequence[str | None] | None = None
    session_ids: Sequence[str | None] | None = None


@dataclass(frozen=True)
class Recommended:
    """One item: `similarity` retrieved it, `score` (a probability) placed it.

    `score` is None for a model trained without its ranking head: similarity alone decides.
    """

    item_id: str
    title: str
    score: float | None
    similarity: float


@dataclass(frozen=True)
class Driver:
    """A history item that the preference signals picked for this answer; weights sum to 1."""

    item_id: str
    title: str
    weight: float


@dataclass(frozen=True)
class Answer:
    """Items, best first, and the history items that drove them, heaviest first."""

    items: list[Recommended]
    drivers: list[Driver]


class Scorer(Protocol):
    """The network, as `hpgr.model.scoring.Scorer` loads it."""

    def retrieve(self, histories: Histories) -> np.ndarray:
        """Scores of the whole catalogue, float [Q, num_items]."""

    def rank(self, histories: Histories, offsets: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Probability of a positive event for each candidate, float [offsets[-1]]."""

    def explain(self, histories: Histories) -> tuple[np.ndarray, np.ndarray]:
        """Positions [Q, K] in each history that the signals picked (-1 none), their weights."""


class Recommender:
    """A scorer with the vocabulary and the rules it was trained with."""

    def __init__(
        self,
        scorer: Scorer,
        items: Sequence[tuple[int, str, str]],
        actions: dict[str, int],
        serving: Serving,
    ) -> None:
        """`items`: (inside id, outside id, title); `actions`: name to inside id."""
        self.scorer, self.serving, self.actions = scorer, serving, actions
        self.item = {outside: inside for inside, outside, _ in items}
        self.names = {inside: (outside, title) for inside, outside, title in items}

    @classmethod
    def load(cls, bundle: Path, *, device: str) -> Recommender:
        """Read the bundle folder; `device` is auto, cpu or cuda.

        Raises:
            UserError: a file of the bundle is missing.
        """
        import torch

        from hpgr.model.scoring import Scorer

        for name in ("serving.json", "items.parquet", "actions.parquet", "model"):
            if not (bundle / name).exists():
                raise UserError(f"{bundle / name} not found: {bundle} is not a model bundle")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        items = pq.read_table(bundle / "items.parquet", columns=["item", "item_id", "title"])
        actions = pq.read_table(bundle / "actions.parquet", columns=["action", "name"])
        rows = zip(*(items[name].to_pylist() for name in items.column_names), strict=True)
        return cls(
            Scorer.load(bundle / "model", device),
            [(inside, outside, title or outside) for inside, outside, title in rows],
            dict(zip(actions["name"].to_pylist(), actions["action"].to_pylist(), strict=True)),
            Serving(**read_json(bundle / "serving.json")),
        )

    def recommend(self, requests: Sequence[Request], *, k: int) -> list[Answer]:
        """The best `k` items for each request.

        Raises:
            UserError: a request has no time, no event, columns of unequal length, or an event
                after its time; the message names the request.
        """
        if not requests:
            return []
        everything = self._histories(requests)
        histories = newest(everything, self.serving.max_history)
        scores = np.asarray(self.scorer.retrieve(histories))
        removed = None
        if self.serving.remove_history:  # all of it, also what the network no longer reads
            nothing_kept = np.zeros(len(everything), dtype=np.int64)
            removed = removed_pairs(everything.offsets, everything.item, nothing_kept)
        nearest = top_items(scores, removed, max(k, self.serving.retrieve))
        candidates = [row[row >= FIRST_ITEM] for row in nearest]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in candidates])])
        probability = None
        if self.serving.ranked:
            probability = self.scorer.rank(histories, offsets, np.concatenate(candidates))
        positions, weights = self.scorer.explain(histories)
        answers = []
        for q, row in enumerate(candidates):
            placed: list[float | None] = [None] * len(row)
            order = np.arange(len(row))
            if probability is not None:
                placed = probability[offsets[q] : offsets[q + 1]].tolist()
                order = np.argsort(-np.array(placed), kind="stable")  # ties keep retrieval's order
            items = [
                Recommended(*self.names[int(row[i])], placed[i], float(scores[q, row[i]]))
                for i in order[:k]
            ]
            own = histories.item[histories.offsets[q] : histories.offsets[q + 1]]
            answers.append(Answer(items, self._drivers(own, positions[q], weights[q])))
        return answers

    def _drivers(
        self, history: np.ndarray, positions: np.ndarray, weights: np.ndarray
    ) -> list[Driver]:
        """Weight of each known history item over the positions that the signals picked."""
        share: dict[int, float] = {}
        for position, weight in zip(positions, weights, strict=True):
            if position >= 0 and weight > 0 and int(history[position]) in self.names:
                item = int(history[position])
                share[item] = share.get(item, 0.0) + float(weight)
        total = sum(share.values())
        return [
            Driver(*self.names[item], weight / total)
            for item, weight in sorted(share.items(), key=lambda pair: -pair[1])
        ]

    def _histories(self, requests: Sequence[Request]) -> Histories:
        """All events of the requests as the arrays that the network reads."""
        rows = [self._history(request, number) for number, request in enumerate(requests)]
        item, action, timestamp, session = (
            np.concatenate(column) for column in zip(*rows, strict=True)
        )
        return Histories(
            offsets=np.concatenate([[0], np.cumsum([len(row[0]) for row in rows])]),
            item=item,
            action=action,
            timestamp=timestamp,
            session=session,
            request_time=np.array([request.request_time for request in requests], np.int64),
        )

    def _history(self, request: Request, number: int) -> tuple[np.ndarray, ...]:
        """(item, action, timestamp, session) of one request, sorted and cut into sessions."""
        _check(request, number)
        time = np.asarray(request.timestamps, dtype=np.int64)
        order = np.argsort(time, kind="stable")
        time = time[order]
        item = np.array([self.item.get(i, UNKNOWN) for i in request.item_ids], np.int32)
        names = request.actions or [None] * len(order)
        action = np.array(
            [self.actions.get(n, NO_ACTION) if n is not None else NO_ACTION for n in names],
            np.int16,
        )
        own = request.session_ids or [None] * len(order)
        starts = np.diff(time, prepend=time[:1]) > self.serving.gap_s
        for place, (before, here) in enumerate(pairwise(order), start=1):
            if own[here] is not None or own[before] is not None:
                starts[place] = own[here] != own[before]
        session = np.cumsum(starts).astype(np.int32)
        return item[order], action[order], time, session


def newest(histories: Histories, count: int) -> Histories:
    """The last `count` events of each query."""
    length = np.minimum(np.diff(histories.offsets), count)
    offsets = np.concatenate([[0], np.cumsum(length)])
    first = histories.offsets[1:] - length
    rows = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], length)
    return Histories(
        offsets=offsets,
        item=histories.item[rows],
        action=histories.action[rows],
        timestamp=histories.timestamp[rows],
        session=histories.session[rows],
        request_time=histories.request_time,
    )


def _check(request: Request, number: int) -> None:
    where = f"request {number}"
    time = request.request_time
    if time is None:
        raise UserError(
            f"{where} has no request time: the model weighs events by how long ago they were, "
            "so an answer without one would depend on a guess. Pass the time of the request."
        )
    if time > LATEST_SECONDS:
        raise UserError(f"{where}: request time {time} is not in seconds; milliseconds?")
    count = len(request.item_ids)
    if count == 0:
        raise UserError(
            f"{where} has no events: the model recommends from a history. Serve the most popular "
            "items until the first event is there."
        )
    for name in ("timestamps", "actions", "session_ids"):
        column = getattr(request, name)
        if column is not None and len(column) != count:
            raise UserError(f"{where}: {count} item_ids but {len(column)} {name}")
    latest = max(request.timestamps)
    if latest > time:
        row = list(request.timestamps).index(latest)
        raise UserError(
            f"{where}: event {row} (item {request.item_ids[row]}) has time {latest}, after the "
            f"request time {time}. Events from the future would leak into the answer: check the "
            "clock, the unit (seconds) and the request time."
        )
