"""The anchors of a trained network: which events they are, and what it costs to take them away.

Three measures, with the weights as trained:

- interventions: the metrics of retrieval and of labelled candidates with the anchors as trained,
  with random ones and with none, on the same queries, with paired intervals;
- choice: how much the anchors of a user's candidates differ, how similar they are, how old;
- deletion: how far the log odds of an item move when its anchors leave the history, against as many
  random events.

Reads the arrays of `hpgr.data.log`. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from hpgr.config import Evaluate
from hpgr.data.histories import Histories, offsets_of
from hpgr.data.log import FIRST_ITEM, VALIDATION, EventLog
from hpgr.evaluation import compare, protocols, ranking, retrieval
from hpgr.evaluation.compare import Estimate
from hpgr.evaluation.headline import signed
from hpgr.evaluation.metric_tables import Tables, ranking_tables, retrieval_tables
from hpgr.evaluation.model_protocols import REASONS, Anchored
from hpgr.metrics import metric_label, top_items

MODES = ("chosen", "random", "none")
CANDIDATES = 20  # of a user, whose anchors are compared
EXPLAINED = 5  # best items of a user whose anchors are taken out of the history
LEAST_EVENTS = 60  # of a user whose anchors are looked at: a short history leaves no choice
NEWEST = 32
QUERIES_A_USER = 10  # one user's anchors are looked at for so many queries
NEGLIGIBLE = 0.02  # share of a metric: a drop that may be larger is not ruled out
SMALLEST = 1e-7  # probability, so that log odds are finite


@dataclass(frozen=True)
class Mechanism:
    """Measures of one network's anchors.

    `values` are means by mode ("chosen", "random", "none") and metric; `drops` are those of the
    anchors as trained minus those of a mode, [mode][metric]. `choice` holds the figures of
    `look_at`, and `deletion` those of the function; both are empty where no user has LEAST_EVENTS
    events or nothing was trained to rank.
    """

    split: str
    queries: int
    candidates: int
    users: int
    values: dict[str, dict[str, float]]
    drops: dict[str, dict[str, Estimate]]
    choice: dict[str, float]
    deletion: dict[str, Estimate]

    @property
    def sentence(self) -> str:
        """Say what random anchors cost, in one sentence."""
        deciding = [m for m in self.drops["random"] if m.startswith(("ndcg@", "auc"))]
        fallen = [m for m in deciding if self.drops["random"][m].low > 0]
        if not fallen:
            names = " nor ".join(map(metric_label, deciding))
            subject = f"neither {names} falls" if len(deciding) > 1 else f"{names} does not fall"
            found = "; ".join(f"{metric_label(m)} {self._change(m)}" for m in deciding)
            open_still = any(
                self.drops["random"][m].high > NEGLIGIBLE * self.values["chosen"][m]
                for m in deciding
            )
            opening = "No far-away preference was found in this log"
            if open_still:
                opening = "Too few queries to say whether this log holds far-away preferences"
            return (
                f"{opening}: with random events as anchors, and the same weights, {subject} beyond "
                f"chance on {self.queries:,} queries ({found})."
            )
        parts = [
            f"{metric_label(m)} falls by {100 * self.relative_drop('random', m):.1f} % "
            f"({self._change(m)})"
            if m in fallen
            else f"{metric_label(m)} does not fall beyond chance ({self._change(m)})"
            for m in deciding
        ]
        return (
            "Which events are the anchors matters: with random ones, and the same weights, "
            f"{', '.join(parts)}."
        )

    @property
    def deletion_sentence(self) -> str:
        """Say what the deletion test found, in one sentence; nothing without it."""
        if not self.deletion:
            return ""
        moved = (
            f"Without its {REASONS} heaviest anchors in the history an item's log odds move by "
            f"{self.deletion['anchors'].value:.3f}, without as many random events by "
            f"{self.deletion['random'].value:.3f}"
        )
        if (ratio := self.deletion.get("ratio")) is None:
            return f"{moved}."
        verdict = "farther, beyond chance"
        if ratio.low <= 1:
            verdict = "less far" if ratio.high < 1 else "no difference beyond chance"
        sentence = (
            f"{moved}: {ratio.value:.2f} times as far "
            f"(95 % interval {ratio.low:.2f} to {ratio.high:.2f}; {verdict})."
        )
        if every := self.deletion.get("all_ratio"):
            sentence += f" Without all of its anchors: {every.value:.2f} times as far."
        return sentence

    def relative_drop(self, mode: str, metric: str) -> float:
        """The share of the metric that is lost in a mode; 0 where there was none to lose."""
        value = self.values["chosen"][metric]
        return self.drops[mode][metric].value / value if value else 0.0

    def record(self) -> dict[str, object]:
        """The content of mechanism.json."""
        return {
            "split": self.split,
            "queries": self.queries,
            "candidates": self.candidates,
            "users": self.users,
            "sentence": self.sentence,
            "values": {mode: _rounded(row) for mode, row in self.values.items()},
            "drops": {
                mode: {metric: _rounded(asdict(drop)) for metric, drop in row.items()}
                for mode, row in self.drops.items()
            },
            "choice": _rounded(self.choice),
            "deletion": {
                name: _rounded({"value": found.value, "low": found.low, "high": found.high})
                for name, found in self.deletion.items()
            },
        }

    def _change(self, metric: str) -> str:
        values, drop = self.values, self.drops["random"][metric]
        return (
            f"{values['chosen'][metric]:.4f} to {values['random'][metric]:.4f}, 95 % interval of "
            f"the drop {signed(drop.low)} to {signed(drop.high)}"
        )


def measure(
    log: EventLog,
    network: object,
    settings: Evaluate,
    *,
    split: int,
    max_history: int,
    ranks: bool,
    labels: bool = True,
) -> Mechanism | None:
    """Measure `network` on `evaluate.mechanism_queries` queries of a split, at most.

    Args:
        log: the sessionized log.
        network: any; one without anchors gives None, and so does a split without queries.
        settings: numbers of queries, of resamples; seed and cutoffs.
        split: VALIDATION or TEST of `hpgr.data.log`.
        max_history: newest events that the network reads.
        ranks: its ranking head was trained.
        labels: on the log's own labels, so that they can judge it.
    """
    everything = protocols.next_item(log, split)
    if not settings.mechanism_queries or not len(everything) or not isinstance(network, Anchored):
        return None
    few = settings.model_copy(update={"tuning_queries": settings.mechanism_queries})
    queries = protocols.sampled(everything, few)
    one = queries.take(slice(0, 1)).histories(log, max_history)
    if not network.explain(one)[0].shape[1]:
        return None
    candidates = (
        protocols.sampled(protocols.labelled(log, split), few) if ranks and labels else None
    )
    if candidates is not None and len(np.unique(candidates.label)) < 2:
        candidates = None
    tables = interventions(network, log, queries, candidates, settings, max_history=max_history)
    wanted = (f"ndcg@{settings.cutoffs[0]}", f"hr@{settings.cutoffs[0]}", "auc", "gauc")
    metrics = [m for m in wanted for table in tables if m in table.metrics["chosen"]]
    users, choice, deleted = 0, dict[str, float](), dict[str, Estimate]()
    if ranks:
        most = -(-settings.mechanism_queries // QUERIES_A_USER)
        asked = long_histories(log, everything, most, max_history, seed=settings.seed)
        asked, best = best_items(network, asked)
        if users := len(asked):
            choice = look_at(network, asked, best, log.meta.num_items, seed=settings.seed)
            deleted = deletion(network, asked, best, settings)
    return Mechanism(
        split="validation" if split == VALIDATION else "test",
        queries=len(queries),
        candidates=0 if candidates is None else len(candidates.label),
        users=users,
        values={
            mode: {m: t.metrics[mode][m] for m in metrics for t in tables if m in t.metrics[mode]}
            for mode in MODES
        },
        drops={mode: _drops(tables, mode, metrics) for mode in MODES[1:]},
        choice=choice,
        deletion=deleted,
    )


def interventions(
    network: Anchored,
    log: EventLog,
    queries: protocols.Queries,
    candidates: protocols.LabelledQueries | None,
    settings: Evaluate,
    *,
    max_history: int,
) -> list[Tables]:
    """Tables of retrieval and, with candidates, of ranking, whose models are the MODES."""
    outcomes: dict[str, retrieval.Retrieved] = {}
    scores: dict[str, np.ndarray] = {}
    for mode in MODES:
        title = f"anchors {mode}"
        with network.intervened(mode):
            (found,) = retrieval.run(
                log, queries, {mode: network}, settings, max_history=max_history, title=title
            )
            outcomes |= found
            if candidates is not None:
                scores[mode] = ranking.score(
                    network, log, candidates, max_history=max_history, title=title
                )
    tables = [retrieval_tables("retrieval", log, queries, outcomes, settings, main="chosen")]
    if candidates is not None:
        tables.append(ranking_tables("ranking", log, candidates, scores, settings, main="chosen"))
    return tables


def _drops(tables: list[Tables], mode: str, metrics: list[str]) -> dict[str, Estimate]:
    return {
        str(row.metric): Estimate(float(row.difference), row.low, row.high, row.p)
        for metric in metrics
        for table in tables
        for row in table.plots["differences"].itertuples()
        if row.against == mode and row.metric == metric
    }


def long_histories(
    log: EventLog, queries: protocols.Queries, users: int, max_history: int, *, seed: int
) -> Histories:
    """Histories of the last query of at most `users` random users with LEAST_EVENTS events."""
    last = np.append(queries.user[1:] != queries.user[:-1], True)
    long = queries.end - log.user_offsets[queries.user] >= LEAST_EVENTS
    kept = np.random.default_rng(seed).permutation(np.flatnonzero(last & long))[:users]
    return queries.take(np.sort(kept)).histories(log, max_history)


def best_items(network: Anchored, asked: Histories) -> tuple[Histories, np.ndarray]:
    """The CANDIDATES best items [Q, CANDIDATES] not in the history; users without go."""
    if not len(asked):
        return asked, np.empty((0, CANDIDATES), dtype=np.int64)
    seen = np.repeat(np.arange(len(asked)), asked.length), asked.item
    best = top_items(network.retrieve(asked), seen, CANDIDATES)
    enough = (best >= FIRST_ITEM).sum(axis=1) == CANDIDATES
    return asked.take(enough), best[enough]


def jaccard(anchors: np.ndarray) -> float:
    """Mean Jaccard index of the sets [N, A] of all pairs of N candidates."""
    sets = [set(row[row >= 0].tolist()) for row in anchors]
    return float(np.mean([len(a & b) / max(1, len(a | b)) for a, b in combinations(sets, 2)]))


def distinct(anchors: np.ndarray) -> int:
    """Number of different events among the anchors [N, A] of N candidates."""
    return len(np.unique(anchors[anchors >= 0]))


def look_at(
    network: Anchored, asked: Histories, best: np.ndarray, num_items: int, *, seed: int
) -> dict[str, float]:
    """Figures of the anchors of each user's candidates.

    Args:
        network: with anchors.
        asked: histories of Q users.
        best: their best items, [Q, N].
        num_items: of the catalogue, from which N random items a user are drawn.
        seed: of the draws.

    Returns:
        Mean Jaccard indices between candidates of one user: `overlap_top`, `overlap_random` and, of
        random sets of events, `overlap_chance`. Numbers of different anchors over the best items:
        `distinct_top`, `distinct_chance`. Cosine of an anchor of them and of random visible events:
        `similarity_anchors`, `similarity_random`, and their difference `similarity_lift`. Shares
        of the NEWEST events among anchors and events: `newest_share`, `newest_share_of_events`.
    """
    random = np.random.default_rng(seed)
    count = best.shape[1]
    offsets = np.arange(len(asked) + 1) * count
    drawn = random.integers(FIRST_ITEM, num_items, best.shape)
    position, similarity = network.anchors(asked, offsets, best.ravel())
    others, _ = network.anchors(asked, offsets, drawn.ravel())
    with network.intervened("random"):
        anywhere, chance = network.anchors(asked, offsets, best.ravel())
    width = position.shape[1]
    sets: dict[str, Iterable[np.ndarray]] = {
        "top": position.reshape(len(asked), count, -1),
        "random": others.reshape(len(asked), count, -1),
        "chance": [
            np.stack([random.permutation(n)[:width] for _ in range(count)]) for n in asked.length
        ],
    }
    found = {f"overlap_{name}": _mean(jaccard(one) for one in of) for name, of in sets.items()}
    for name in ("top", "chance"):
        found[f"distinct_{name}"] = _mean(distinct(one) for one in sets[name])
    real, length = position >= 0, asked.length
    found["similarity_anchors"] = float(similarity[real].mean())
    found["similarity_random"] = float(chance[anywhere >= 0].mean())
    found["similarity_lift"] = found["similarity_anchors"] - found["similarity_random"]
    age = np.repeat(length, count)[:, None] - position
    found["newest_share"] = float((age[real] <= NEWEST).mean())
    found["newest_share_of_events"] = float((np.minimum(length, NEWEST) / length).mean())
    return found


def deletion(
    network: Anchored, asked: Histories, best: np.ndarray, settings: Evaluate
) -> dict[str, Estimate]:
    """Mean absolute change of an item's log odds without its anchors, without random events.

    Args:
        network: with anchors.
        asked: histories of Q users.
        best: their best items, [Q, N], of which EXPLAINED are explained.
        settings: resamples of users and seed.

    Returns:
        Of the REASONS heaviest anchors of each item `anchors`, `random` and their `ratio`, which is
        missing where random events move nothing; `all_anchors`, `all_random` and `all_ratio` of all
        of its anchors.
    """
    items = best[:, :EXPLAINED].ravel()
    user = np.repeat(np.arange(len(asked)), len(items) // len(asked))
    position, weight = network.explain(asked, offsets_of(np.bincount(user)), items)
    heaviest = np.argsort(-weight, axis=1, kind="stable")
    position = np.take_along_axis(position, heaviest, axis=1)
    alone = asked.take(user)
    single = np.arange(len(items) + 1)

    def log_odds(kept: np.ndarray) -> np.ndarray:
        before = np.concatenate([[0], np.cumsum(kept)])
        rest = Histories.gather(
            alone, before[alone.offsets], np.flatnonzero(kept), alone.request_time
        )
        chance = network.rank(rest, single, items).astype(np.float64)
        chance = np.clip(chance, SMALLEST, 1 - SMALLEST)
        return np.log(chance) - np.log1p(-chance)

    full = log_odds(np.ones(len(alone.item), dtype=bool))
    found: dict[str, Estimate] = {}
    for prefix, most in (("", REASONS), ("all_", position.shape[1])):
        change = np.stack(
            [
                np.abs(log_odds(_without(alone, position[:, :most], draw)) - full)
                for draw in (None, np.random.default_rng(settings.seed))
            ],
            axis=1,
        )
        means = compare.bootstrap_means(user, change, settings)
        anchors, others = change.mean(axis=0)
        found[f"{prefix}anchors"] = compare.estimate(anchors, means[:, 0])
        found[f"{prefix}random"] = compare.estimate(others, means[:, 1])
        if others > 0:
            moved = np.where(means[:, 1] > 0, means[:, 1], np.nan)
            ratio = compare.estimate(anchors / others, means[:, 0] / moved)
            found[f"{prefix}ratio"] = ratio
    return found


def _without(
    histories: Histories, position: np.ndarray, draw: np.random.Generator | None
) -> np.ndarray:
    """Mask of the events that stay: without those at `position` [Q, A], or as many random ones."""
    kept = np.ones(len(histories.item), dtype=bool)
    for query, places in enumerate(position):
        place = places[places >= 0]
        if draw is not None:
            place = draw.permutation(histories.length[query])[: len(place)]
        kept[histories.offsets[query] + place] = False
    return kept


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in values.items()}
