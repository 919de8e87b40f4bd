"""Challenger against champion on the same test queries: the figures that the gate decides on.

Both networks answer in the ids of today's log. An item that a network has never seen is the unknown
item in a history and cannot be retrieved. Next item, leave-one-out (R1) or temporal (R2) as the
split says, in retrieval's order and in the order that is served (`served.*`: the best items in the
network's own blend of retrieval and pCTR, where it ranks); also CTR, temporal (K1) where both rank
and the split is global-time, and next basket, temporal (B1, `basket.*`) where sessions are baskets.
Reads the arrays of `hpgr.data.log`. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hpgr import metrics
from hpgr.config import Evaluate
from hpgr.data.baskets import Baskets, next_basket
from hpgr.data.batches import CandidateRows
from hpgr.data.histories import Histories
from hpgr.data.id_map import IdMap
from hpgr.data.log import TEST, EventLog
from hpgr.evaluation import compare, protocols, ranking, retrieval
from hpgr.evaluation.blend import Blend
from hpgr.evaluation.like_weight import served_ranks
from hpgr.evaluation.model_protocols import Ranker
from hpgr.evaluation.next_basket import answers
from hpgr.evaluation.slices import activity, gate_slices
from hpgr.metrics import BASKET

SERVED = "served."  # before the name of a metric of retrieval: of the order that is served


@dataclass(frozen=True)
class Contestant:
    """A network that reads and answers in the log's ids, whatever its own vocabulary."""

    network: Ranker
    ids: IdMap  # how its vocabulary calls the log's ids
    max_history: int
    candidates: int  # best items that it orders when it serves
    ranks: bool  # the ranking head was trained
    blend: Blend  # the order in which it serves them

    def retrieve(self, histories: Histories) -> np.ndarray:
        """float32 [Q, num_items]; -inf for items that the network does not know."""
        return self.ids.scores(self.network.retrieve(self.ids.histories(histories)))

    def rank(self, histories: Histories, offsets: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Probability of every candidate, float32 [C]; unknown items are judged as unknown."""
        own = self.ids.histories(histories)
        return self.network.rank(own, offsets, self.ids.item[candidates])

    def retrieve_rows(
        self, histories: Histories, rows: np.ndarray, request_time: np.ndarray | None = None
    ) -> np.ndarray:
        """float32 [Q, num_items]; -inf for items that the network does not know."""
        own = self.ids.histories(histories)
        return self.ids.scores(self.network.retrieve_rows(own, rows, request_time))

    def rank_rows(self, histories: Histories, rows: CandidateRows) -> np.ndarray:
        """Probability of every candidate, float32 [C]; unknown items are judged as unknown."""
        own = replace(rows, item=self.ids.item[rows.item])
        return self.network.rank_rows(self.ids.histories(histories), own)


@dataclass(frozen=True)
class Change:
    """One figure of both; `low`, `high` and `p` are the paired bootstrap's, of the difference."""

    champion: float
    challenger: float
    low: float
    high: float
    p: float
    queries: int

    @property
    def relative(self) -> float:
        """Relative change of the figure; infinite where the champion has zero and this has not."""
        if self.champion == self.challenger:
            return 0.0
        difference = self.challenger - self.champion
        return difference / abs(self.champion) if self.champion else float(np.inf * difference)


@dataclass(frozen=True)
class Contest:
    """Every figure of both: by metric over all queries, and the deciding one by slice."""

    protocols: tuple[str, ...]
    metrics: dict[str, Change]
    slices: dict[str, Change]


def contest(
    log: EventLog,
    champion: Contestant,
    challenger: Contestant,
    settings: Evaluate,
    *,
    deciding: str,
) -> Contest:
    """Score both on the test queries of `log`.

    Args:
        log: the sessionized log, in whose ids both are asked.
        champion: what serves today.
        challenger: what would take its place.
        settings: cutoffs, bootstrap, whether sessions are baskets.
        deciding: metric whose slices are compared.
    """
    pair = {"champion": champion, "challenger": challenger}
    queries = protocols.next_item(log, TEST)
    outcomes = {name: _retrieval(log, queries, own, settings, name) for name, own in pair.items()}
    per_query = {
        name: {
            f"{order}{metric}": value
            for order, ranks in (
                ("", outcome.ranks),
                (SERVED, _served(log, queries, pair[name], outcome, name)),
            )
            for metric, value in metrics.retrieval_metrics(ranks, settings.cutoffs).items()
        }
        for name, outcome in outcomes.items()
    }
    masks = gate_slices(log, queries.user, queries.row)
    found = _means(queries.user, per_query, settings)
    sliced = _sliced(queries.user, per_query, masks, settings, deciding)
    k = settings.cutoffs[0]
    before, after = (metrics.coverage(o.top[:, :k], log.meta.num_items) for o in outcomes.values())
    gain = after - before  # of the whole answer, which has no queries to resample
    found[f"coverage@{k}"] = Change(before, after, gain, gain, float("nan"), len(queries))
    if log.meta.split == "leave-one-out":
        return Contest(("R1",), found, sliced)
    named: tuple[str, ...] = ("R2",)
    candidates = protocols.labelled(log, TEST)
    if champion.ranks and challenger.ranks and 0 < candidates.label.sum() < len(candidates.label):
        named += ("K1",)
        ranked, by_slice = _ranking(log, candidates, pair, settings, deciding)
        found |= ranked
        sliced |= by_slice
    if settings.baskets and len(baskets := next_basket(log, TEST)):
        named += ("B1",)
        whole, by_slice = _baskets(log, baskets, pair, settings, deciding)
        found |= whole
        sliced |= by_slice
    return Contest(named, found, sliced)


def _retrieval(
    log: EventLog, queries: protocols.Queries, own: Contestant, settings: Evaluate, title: str
) -> retrieval.Retrieved:
    """Ranks, and as many of the best items as coverage and the ranking head ask for."""
    deep = settings.model_copy(update={"cutoffs": (max(own.candidates, settings.cutoffs[0]),)})
    reach = own.max_history
    (found,) = retrieval.run(log, queries, {title: own}, deep, max_history=reach, title=title)
    return found[title]


def _served(
    log: EventLog,
    queries: protocols.Queries,
    own: Contestant,
    outcome: retrieval.Retrieved,
    title: str,
) -> np.ndarray:
    """Ranks in the order that is served, int64 [Q]; as they are where nothing ranks."""
    if not own.ranks:
        return outcome.ranks
    n = own.candidates
    best = retrieval.Retrieved(outcome.ranks, outcome.top[:, :n], outcome.score[:, :n])
    (ranks,) = served_ranks(
        log, queries, own, best, [own.blend], max_history=own.max_history, title=title
    )
    return ranks


def _ranking(
    log: EventLog,
    candidates: protocols.LabelledQueries,
    pair: Mapping[str, Contestant],
    settings: Evaluate,
    deciding: str,
) -> tuple[dict[str, Change], dict[str, Change]]:
    """K1: the metrics over all candidates, and AUC by slice where it decides."""
    user, label = candidates.candidate_user(), candidates.label
    scores = {
        name: ranking.score(own, log, candidates, max_history=own.max_history, title=f"{name}, K1")
        for name, own in pair.items()
    }

    def areas(mask: np.ndarray) -> Change:
        part = {name: score[mask] for name, score in scores.items()}
        values = [metrics.auc(label[mask], score) or 0.0 for score in part.values()]
        replicates = compare.bootstrap_auc(user[mask], label[mask], part, settings)
        return _change(values, replicates, int(mask.sum()))

    losses = {n: {"log_loss": metrics.log_loss(label, p)} for n, p in scores.items()}
    found = {"auc": areas(np.ones(len(label), bool)), **_means(user, losses, settings)}
    slices: dict[str, Change] = {}
    if deciding == "auc":
        for name, mask in gate_slices(log, user, candidates.row).items():
            if 0 < label[mask].sum() < mask.sum():
                slices[name] = areas(mask)
    return found, slices


def _baskets(
    log: EventLog,
    queries: Baskets,
    pair: Mapping[str, Contestant],
    settings: Evaluate,
    deciding: str,
) -> tuple[dict[str, Change], dict[str, Change]]:
    """B1: recall and NDCG of whole baskets, and the deciding one by activity of the user."""
    per_query = {}
    for name, own in pair.items():
        found = answers(
            log,
            queries,
            {name: own},
            settings,
            max_history=own.max_history,
            title=f"{name}, B1",
        )
        per_query[name] = {f"{BASKET}{n}": value for n, value in found.every[name].items()}
    masks = activity(log, queries.user)
    sliced = _sliced(queries.user, per_query, masks, settings, deciding)
    return _means(queries.user, per_query, settings), sliced


def _sliced(
    user: np.ndarray,
    per_query: Mapping[str, Mapping[str, np.ndarray]],
    masks: Mapping[str, np.ndarray],
    settings: Evaluate,
    deciding: str,
) -> dict[str, Change]:
    """Change of the deciding metric in every slice; empty where it is none of `per_query`'s."""
    return {
        name: _means(
            user[mask],
            {who: {deciding: row[deciding][mask]} for who, row in per_query.items()},
            settings,
        )[deciding]
        for name, mask in masks.items()
        if deciding in per_query["champion"] and mask.any()
    }


def _means(
    user: np.ndarray, per_query: Mapping[str, Mapping[str, np.ndarray]], settings: Evaluate
) -> dict[str, Change]:
    """Change of the mean of every metric; `per_query` is champion, then challenger."""
    by_metric = {
        name: {who: row[name] for who, row in per_query.items()} for name in per_query["champion"]
    }
    replicates = compare.bootstrap_metrics(user, by_metric, settings)
    means = {n: np.stack([*v.values()], axis=1).mean(axis=0) for n, v in by_metric.items()}
    return {n: _change(v.tolist(), replicates[n], len(user)) for n, v in means.items()}


def _change(values: list[float], replicates: Mapping[str, np.ndarray], queries: int) -> Change:
    champion, challenger = values
    differences = replicates["challenger"] - replicates["champion"]
    found = compare.estimate(challenger - champion, differences)
    return Change(champion, challenger, found.low, found.high, found.p, queries)
