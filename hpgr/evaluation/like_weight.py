"""The weight of log p(like) in the served order, chosen on validation (`hpgr.evaluation.blend`).

Every weight of the grid orders the same retrieved items of the same validation queries; the test
split plays no part. Reads the arrays of `hpgr.data.log`. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from hpgr.config import Evaluate
from hpgr.data.log import FIRST_ITEM, EventLog
from hpgr.evaluation import retrieval
from hpgr.evaluation.blend import Blend, likes, reorder
from hpgr.evaluation.model_protocols import Ranker
from hpgr.evaluation.protocols import Queries
from hpgr.metrics import metric_label, retrieval_metrics


@dataclass(frozen=True)
class Choice:
    """The chosen weight, and the mean of `metric` by weight on `queries` validation queries."""

    like_weight: float
    metric: str
    queries: int
    values: dict[float, float]

    @property
    def sentence(self) -> str:
        """The choice in one sentence."""
        if not self.queries:
            return "Served order: retrieval alone; nothing on validation can weigh p(like)."
        found = ", ".join(f"{value:.4f} at {weight:g}" for weight, value in self.values.items())
        order = f"log p(next) + {self.like_weight:g} log p(like)"
        return (
            f"Served order: {order if self.like_weight else 'retrieval alone'}; weight "
            f"{self.like_weight:g} was best on {self.queries:,} validation queries "
            f"({metric_label(self.metric)} {found})."
        )

    def record(self) -> dict[str, object]:
        """The content of like_weight.json."""
        return {
            "split": "validation",
            "queries": self.queries,
            "metric": self.metric,
            "like_weight": self.like_weight,
            "values": {f"{weight:g}": round(value, 6) for weight, value in self.values.items()},
        }


def choose(
    log: EventLog,
    network: Ranker,
    settings: Evaluate,
    *,
    temperature: float,
    max_history: int,
    metric: str,
    rules: Sequence[bool],
) -> dict[bool, Choice]:
    """The weight of `evaluate.like_weights` that is best on a sample of validation queries.

    By each of `rules`: True where items that the user met before are removed, as they are served.

    Args:
        log: the sessionized log.
        network: what is served.
        settings: the grid, `retrieve` and the size of the sample.
        temperature: of the network's softmax.
        max_history: newest events that the network reads.
        metric: hr@K or ndcg@K that decides; of equal weights the smallest wins.
        rules: see above.
    """
    queries = retrieval.validation_queries(log, settings)
    if not len(queries):
        return dict.fromkeys(rules, no_choice(metric))
    weights = sorted(set(settings.like_weights))
    blends = [Blend(weight, temperature) for weight in weights]
    deep = settings.model_copy(update={"cutoffs": (settings.retrieve,)})
    title = "weights of p(like) on validation"
    by_rule = retrieval.run(
        log, queries, {title: network}, deep, max_history=max_history, title=title, rules=rules
    )
    choices = {}
    for rule, outcomes in zip(rules, by_rule, strict=True):
        found = outcomes[title]
        ranks = served_ranks(
            log, queries, network, found, blends, max_history=max_history, title=title
        )
        choices[rule] = _best(metric, weights, ranks)
    return choices


def no_choice(metric: str) -> Choice:
    """Retrieval's own order, where nothing can weigh another."""
    return Choice(0.0, metric, 0, {})


def _best(metric: str, weights: Sequence[float], ranks: Sequence[np.ndarray]) -> Choice:
    """The first of the best."""
    cutoff = int(metric.partition("@")[2])
    values = {
        weight: float(retrieval_metrics(own, [cutoff])[metric].mean())
        for weight, own in zip(weights, ranks, strict=True)
    }
    return Choice(max(values, key=lambda weight: values[weight]), metric, len(ranks[0]), values)


def served_ranks(
    log: EventLog,
    queries: Queries,
    network: Ranker,
    retrieved: retrieval.Retrieved,
    blends: Sequence[Blend],
    *,
    max_history: int,
    title: str,
) -> list[np.ndarray]:
    """Ranks of the hidden items in the order of each of `blends`, int64 [Q].

    pCTR is computed only where the hidden item was retrieved: elsewhere it cannot help it.

    Args:
        log: the sessionized log.
        queries: who asks and what is hidden.
        network: gives pCTR.
        retrieved: its answers; all of their items are ordered.
        blends: the orders.
        max_history: newest events that the network reads.
        title: of the progress bar.
    """
    top, cosine = retrieved.top, retrieved.score
    below = np.maximum(retrieved.ranks, (top >= FIRST_ITEM).sum(axis=1) + 1)
    ranks = [(retrieved.ranks if blend.retrieval_only else below).copy() for blend in blends]
    if all(blend.retrieval_only for blend in blends):
        return ranks
    found = np.flatnonzero((top == queries.target[:, None]).any(axis=1))
    with tqdm(total=len(found), desc=f"{title}, served", unit="query", mininterval=2.0) as bar:
        for block in retrieval.blocks(log, queries.take(found), max_history):
            part = found[block]
            asked = queries.take(part)
            like = likes(network, asked.histories(log, max_history), top[part])
            for blend, own in zip(blends, ranks, strict=True):
                own[part], _ = reorder(
                    blend, top[part], cosine[part], like, asked.target, retrieved.ranks[part]
                )
            bar.update(len(part))
    return ranks
