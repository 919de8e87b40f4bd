"""The trained model beside every other model on validation: the one to serve.

Where sessions are baskets, NDCG of the next basket decides. Elsewhere the metric is the one that
early stopping watched: NDCG or HR of retrieval, or AUC of labelled candidates (GAUC of shown lists:
`hpgr.evaluation.shown_lists`). All models answer the same validation queries, and differences are
paired. The test split plays no part. Reads the arrays of `hpgr.data.log`. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from hpgr import metrics
from hpgr.config import Evaluate
from hpgr.data.baskets import next_basket
from hpgr.data.log import VALIDATION, EventLog
from hpgr.evaluation import compare, protocols, ranking, retrieval
from hpgr.evaluation.compare import Estimate
from hpgr.evaluation.headline import label, signed
from hpgr.evaluation.model_protocols import Ranker, Retriever
from hpgr.evaluation.next_basket import answers
from hpgr.evaluation.simple_rankers import SimpleRankers
from hpgr.metrics import BASKET, metric_label

Values = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Standing:
    """The judged model `main` among its rivals on `queries` queries of validation.

    `asked` is what a person calls these. `values` are means by model and metric, `metric`
    decides, and `differences` are main minus each rival in it. `serve_instead` is the best rival
    where one is ahead of main, else None.
    """

    main: str
    metric: str
    queries: int
    values: Values
    differences: dict[str, Estimate]
    asked: str = "queries"

    @property
    def best_rival(self) -> str:
        """The rival with the highest value of the deciding metric."""
        return max(self.differences, key=lambda name: self.values[name][self.metric])

    @property
    def serve_instead(self) -> str | None:
        """The model to serve in place of main."""
        rival = self.best_rival
        ahead = self.values[rival][self.metric] > self.values[self.main][self.metric]
        return rival if ahead else None

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        rival, found = self.best_rival, self.differences[self.best_rival]
        interval = (
            f"{label(self.main)} minus {label(rival)} {signed(found.value)}, "
            f"95 % interval {signed(found.low)} to {signed(found.high)}"
        )
        asked = f"{self.queries:,} validation {self.asked}"
        if self.serve_instead:
            return (
                f"Serve {label(rival)} instead of {label(self.main)}: on {asked} it reaches "
                f"{self._figures(rival)} against {self._figures(self.main)} ({interval})."
            )
        return (
            f"No baseline is ahead of {label(self.main)}: on {asked} it reaches "
            f"{self._figures(self.main)}; next is {label(rival)} with {self._figures(rival)} "
            f"({interval})."
        )

    def record(self) -> dict[str, object]:
        """The content of verdict.json."""
        return {
            "split": "validation",
            "queries": self.queries,
            "metric": self.metric,
            "model": self.main,
            "serve_instead": self.serve_instead,
            "sentence": self.sentence,
            "values": {
                model: {name: round(value, 6) for name, value in row.items()}
                for model, row in self.values.items()
            },
            "differences": {
                model: {name: round(value, 6) for name, value in asdict(found).items()}
                for model, found in self.differences.items()
            },
        }

    def _figures(self, model: str) -> str:
        row = self.values[model]
        first = [self.metric, *(name for name in row if name != self.metric)]
        return " and ".join(
            f"{metric_label(name.removeprefix(BASKET))} {row[name]:.4f}" for name in first
        )


def retrieval_standing(
    log: EventLog,
    models: Mapping[str, Retriever],
    settings: Evaluate,
    *,
    max_history: int,
    metric: str,
) -> Standing | None:
    """By `metric`, "hr" or "ndcg" at the first cutoff; the first of `models` is judged.

    None where validation asks nothing.
    """
    queries = retrieval.validation_queries(log, settings)
    if not len(queries):
        return None
    (outcomes,) = retrieval.run(
        log, queries, models, settings, max_history=max_history, title="all models on validation"
    )
    k = settings.cutoffs[0]
    names = (f"{metric}@{k}", *(f"{n}@{k}" for n in ("ndcg", "hr") if n != metric))
    found = {n: metrics.retrieval_metrics(o.ranks, [k]) for n, o in outcomes.items()}
    values = {model: {n: float(row[n].mean()) for n in names} for model, row in found.items()}
    deciding = np.stack([row[names[0]] for row in found.values()], axis=1)
    means = compare.bootstrap_means(queries.user, deciding, settings)
    return standing(names[0], len(queries), values, dict(zip(found, means.T, strict=True)))


def basket_standing(
    log: EventLog, models: Mapping[str, Retriever], settings: Evaluate, *, max_history: int
) -> Standing | None:
    """By NDCG of the next basket at the first cutoff; the first of `models` is judged.

    Every model answers as it does on test (B1). None where validation asks for no basket.
    """
    queries = protocols.sampled(next_basket(log, VALIDATION), settings)
    if not len(queries):
        return None
    title = "all models on validation baskets"
    found = answers(log, queries, models, settings, max_history=max_history, title=title).every
    names = [f"{name}@{settings.basket_cutoffs[0]}" for name in ("ndcg", "recall")]
    values = {m: {f"{BASKET}{n}": float(row[n].mean()) for n in names} for m, row in found.items()}
    deciding = np.stack([row[names[0]] for row in found.values()], axis=1)
    means = compare.bootstrap_means(queries.user, deciding, settings)
    samples = dict(zip(found, means.T, strict=True))
    return standing(f"{BASKET}{names[0]}", len(queries), values, samples, asked="baskets")


def ranking_standing(
    log: EventLog,
    name: str,
    network: Ranker,
    simple: SimpleRankers,
    settings: Evaluate,
    *,
    max_history: int,
) -> Standing | None:
    """By AUC of the labels of validation events, each given what happened strictly before.

    None where the validation labels are all the same.
    """
    candidates = protocols.sampled(protocols.labelled(log, VALIDATION), settings)
    if len(np.unique(candidates.label)) < 2:
        return None
    title = f"{name} on validation"
    own = ranking.score(network, log, candidates, max_history=max_history, title=title)
    scores: dict[str, np.ndarray] = {name: own, **simple.probabilities(candidates)}
    values = {n: {"auc": metrics.auc(candidates.label, s) or 0.0} for n, s in scores.items()}
    user = candidates.candidate_user()
    samples = compare.bootstrap_auc(user, candidates.label, scores, settings)
    return standing("auc", len(candidates.label), values, samples)


def standing(
    metric: str,
    queries: int,
    values: Values,
    samples: Mapping[str, np.ndarray],
    asked: str = "queries",
) -> Standing:
    """The first model of `values` among the others; `samples` are bootstrap means of `metric`."""
    main, *rivals = values
    differences = {
        rival: compare.estimate(
            values[main][metric] - values[rival][metric], samples[main] - samples[rival]
        )
        for rival in rivals
    }
    return Standing(main, metric, queries, values, differences, asked)
