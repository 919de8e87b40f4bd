"""Some users as a person sees them: sessions with titles, the anchors, and what was offered.

The users are drawn at random, not by success, among those with several sessions where there are
enough. Reads the arrays of `hpgr.data.log` and the tables beside them. Writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from hpgr.config import Evaluate
from hpgr.data.histories import Histories
from hpgr.data.log import EventLog
from hpgr.evaluation.blend import Blend, likes, reorder
from hpgr.evaluation.model_protocols import RankingModel
from hpgr.evaluation.protocols import Queries
from hpgr.evaluation.retrieval import Retrieved, seen_pairs
from hpgr.metrics import MISS, ranks_of, top_items

MAX_SESSIONS, MAX_EVENTS, NEIGHBOURS = 5, 12, 1  # a card fits a screen


@dataclass(frozen=True)
class Names:
    """Titles, user names and action names by dense id."""

    item: list[str]
    user: list[str]
    action: list[str]

    @classmethod
    def read(cls, folder: Path, num_items: int) -> Names:
        """From `items.parquet`, `users.parquet` and `actions.parquet` below `folder`."""
        items = pd.read_parquet(folder / "items.parquet")
        title = items["title"].where(items["title"].notna(), items["item_id"]).astype(str)
        item = [f"item {i}" for i in range(num_items)]
        for i, text in zip(items["item"], title, strict=True):
            item[i] = text
        users = pd.read_parquet(folder / "users.parquet").sort_values("user")
        actions = pd.read_parquet(folder / "actions.parquet")
        action = [""] * (int(actions["action"].max() if len(actions) else 0) + 1)
        for i, text in zip(actions["action"], actions["name"].astype(str), strict=True):
            action[i] = text
        return cls(item, users["user_id"].astype(str).tolist(), action)


@dataclass(frozen=True)
class Event:
    """One event of a history; `weight` 0..1 is its strength as an anchor, 0: it is none."""

    title: str
    action: str
    weight: float
    skipped: int  # events left out of the card just before this one


@dataclass(frozen=True)
class Session:
    """One session, oldest event first; `hidden_events` counts what follows unseen on the card."""

    day: str
    length: int
    events: list[Event]
    hidden_events: int


@dataclass(frozen=True)
class Offer:
    """One recommended item."""

    title: str
    probability: float | None
    hit: bool


@dataclass(frozen=True)
class Example:
    """One card of the report."""

    user: str
    num_events: int
    earlier_sessions: int  # not shown
    sessions: list[Session]
    offers: list[Offer]
    target: str
    rank: int | None  # None: a repeat, and items seen before are not offered
    num_anchors: int


def pick(log: EventLog, queries: Queries, settings: Evaluate) -> Queries:
    """The last query of `report_users` random users, first among those with several sessions."""
    last = np.flatnonzero(np.append(np.diff(queries.user) != 0, True))
    order = np.random.default_rng(settings.seed).permutation(last)
    several = log.session[queries.row[order] - 1] > 0
    order = np.concatenate([order[several], order[~several]])
    return queries.take(order[: settings.report_users])


def examples(
    log: EventLog,
    queries: Queries,
    network: RankingModel,
    names: Names,
    settings: Evaluate,
    *,
    max_history: int,
    ranks: bool,
    blend: Blend,
) -> list[Example]:
    """Cards for `queries`, at most a screen each, with offers as served.

    If the network `ranks`, the offers are in the order of the `blend` and have a pCTR.
    """
    if not len(queries):
        return []
    histories = queries.histories(log, max_history)
    removed = seen_pairs(log, queries, remove=log.meta.remove_history)
    scores = network.retrieve(histories)
    place = ranks_of(scores, queries.target, removed, catalogue_chunk=settings.catalogue_chunk)
    shown = settings.cutoffs[0]
    top = top_items(scores, removed, max(settings.retrieve, shown))
    probability = np.full(top.shape, np.nan, dtype=np.float32)
    if ranks:
        best = Retrieved.of(place, top, scores)
        like = likes(network, histories, top)
        place, top = reorder(blend, top, best.score, like, queries.target, place)
        probability = likes(network, histories, top[:, :shown])
    anchors, weights = network.explain(histories)
    cards = []
    for q in range(len(queries)):
        length = int(histories.offsets[q + 1] - histories.offsets[q])
        weight = np.zeros(length)
        real = anchors[q] >= 0
        np.maximum.at(weight, anchors[q][real].astype(np.int64), weights[q][real])
        if weight.max(initial=0) > 0:
            weight = weight / weight.max()
        sessions = _sessions(histories, q, weight, names)
        cards.append(
            Example(
                user=names.user[queries.user[q]],
                num_events=length,
                earlier_sessions=max(0, len(sessions) - MAX_SESSIONS),
                sessions=sessions[-MAX_SESSIONS:],
                offers=[
                    Offer(names.item[i], float(p) if ranks else None, bool(i == queries.target[q]))
                    for i, p in zip(top[q, :shown], probability[q, :shown], strict=True)
                    if i >= 0
                ],
                target=names.item[queries.target[q]],
                rank=int(place[q]) if place[q] != MISS else None,
                num_anchors=int((weight > 0).sum()),
            )
        )
    return cards


def _sessions(histories: Histories, q: int, weight: np.ndarray, names: Names) -> list[Session]:
    """The sessions of query `q`, oldest first."""
    start = int(histories.offsets[q])
    rows = np.arange(start, int(histories.offsets[q + 1]))
    session = histories.session[rows]
    order = np.argsort(session, kind="stable")  # sessions may interleave
    result = []
    for part in np.split(order, np.flatnonzero(np.diff(session[order])) + 1):
        shown = _shown(weight[part])
        events, previous = [], -1
        for i in shown:
            row = rows[part[i]]
            events.append(
                Event(
                    title=names.item[histories.item[row]],
                    action=names.action[histories.action[row]],
                    weight=float(weight[part[i]]),
                    skipped=int(i - previous - 1),
                )
            )
            previous = i
        day = datetime.fromtimestamp(int(histories.timestamp[rows[part[0]]]), UTC)
        result.append(
            Session(f"{day:%Y-%m-%d %H:%M}", len(part), events, int(len(part) - 1 - previous))
        )
    return result


def _shown(weight: np.ndarray) -> np.ndarray:
    """Positions that a session's card shows: all, or the picked with neighbours and the end."""
    if len(weight) <= MAX_EVENTS:
        return np.arange(len(weight))
    near = np.zeros(len(weight), dtype=bool)
    for anchor in np.flatnonzero(weight > 0):
        near[max(0, anchor - NEIGHBOURS) : anchor + NEIGHBOURS + 1] = True
    near[-2:] = True
    return np.flatnonzero(near)
