"""From the answers of the models to tables: means, intervals, differences, slices.

Long tables, one value a row, ready for `dvc plots` and for the figures. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from hpgr import metrics
from hpgr.config import Evaluate
from hpgr.data.log import FIRST_ITEM, EventLog
from hpgr.evaluation import compare
from hpgr.evaluation.list_metrics import list_metrics
from hpgr.evaluation.protocols import CandidateQueries, LabelledQueries, Queries
from hpgr.evaluation.ranking import ranking_metrics
from hpgr.evaluation.retrieval import Retrieved
from hpgr.evaluation.slices import Slices, popularity_classes, reported_slices

CLASSES = ("head", "mid", "tail", "cold")
CURVE_POINTS = 40
# Behind the name of a protocol that was judged by the other rule for items seen before, by whether
# they were removed.
WAYS = {True: "seen_removed", False: "seen_kept"}

# By model and metric: a mean; a value a query or a resample.
Values = Mapping[str, Mapping[str, float]]
Replicates = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Tables:
    """Results of one protocol; `plots` holds the long tables by name.

    `protocol` is R1, R2, B1, K1 or I1, or has one of WAYS behind it (R1_seen_kept), or new_items
    (B1).
    """

    protocol: str
    main: str  # the model that the others are compared with
    metrics: dict[str, dict[str, float]]  # by model, in the order of the report
    counts: dict[str, int]
    plots: dict[str, pd.DataFrame] = field(default_factory=dict)
    remark: str | None = None  # what a reader of the numbers must know


def retrieval_tables(
    protocol: str,
    log: EventLog,
    queries: Queries,
    outcomes: Mapping[str, Retrieved],
    settings: Evaluate,
    *,
    main: str,
) -> Tables:
    """The results of R1 or R2, for the report."""
    k = settings.cutoffs[0]
    per_query = {
        n: metrics.retrieval_metrics(o.ranks, settings.cutoffs) for n, o in outcomes.items()
    }
    values = {n: {m: float(v.mean()) for m, v in q.items()} for n, q in per_query.items()}
    replicates = compare.bootstrap_metrics(queries.user, per_query, settings)
    classes = popularity_classes(log)
    for model, outcome in outcomes.items():
        values[model][f"coverage@{k}"] = metrics.coverage(outcome.top, log.meta.num_items)
        values[model][f"head_share@{k}"] = metrics.head_share(outcome.top, classes == 0)
    return Tables(
        protocol,
        main,
        values,
        counts={
            "queries": len(queries),
            "users": len(np.unique(queries.user)),
            "items": log.meta.num_items - FIRST_ITEM,
            "cold_targets": int((classes[queries.target] == 3).sum()),
            "repeated_targets": repeated_targets(log, queries),
        },
        plots={
            "intervals": _intervals(values, replicates),
            "differences": _differences(main, values, replicates),
            "slices": query_slices(log, queries, per_query, k),
            "hr_at_k": _curves(outcomes, max(settings.cutoffs)),
            "popularity": _popularity(outcomes, classes, queries.target),
        },
    )


def basket_tables(
    protocol: str,
    user: np.ndarray,
    per_query: Replicates,
    counts: dict[str, int],
    settings: Evaluate,
    *,
    main: str,
    slices: Slices,
) -> Tables:
    """The results of B1, for the report, from every model's metrics of each query [Q]."""
    k = settings.basket_cutoffs[0]
    values = {n: {m: float(v.mean()) for m, v in row.items()} for n, row in per_query.items()}
    replicates = compare.bootstrap_metrics(user, per_query, settings)
    plots = {
        "intervals": _intervals(values, replicates),
        "differences": _differences(main, values, replicates),
        "slices": slice_table(slices, per_query, [f"recall@{k}", f"ndcg@{k}"]),
    }
    return Tables(protocol, main, values, counts, plots)


def ranking_tables(
    protocol: str,
    log: EventLog,
    candidates: LabelledQueries,
    probabilities: Mapping[str, np.ndarray],
    settings: Evaluate,
    *,
    main: str,
) -> Tables:
    """The results of K1, for the report."""
    user, label = candidates.candidate_user(), candidates.label
    values = {n: ranking_metrics(candidates, p, settings) for n, p in probabilities.items()}
    areas = compare.bootstrap_auc(user, label, probabilities, settings)
    losses = {n: {"log_loss": metrics.log_loss(label, p)} for n, p in probabilities.items()}
    loss = compare.bootstrap_metrics(user, losses, settings)
    replicates = {n: {"auc": area, **loss[n]} for n, area in areas.items()}
    groups = {n: metrics.group_auc(user, label, p) for n, p in probabilities.items()}
    users, _, weight = groups[main]
    if len(users):
        per_user = np.stack([area for _, area, _ in groups.values()], axis=1)
        grouped = compare.bootstrap_means(users, per_user, settings, weight=weight.astype(float))
        for model, column in zip(groups, grouped.T, strict=True):
            replicates[model]["gauc"] = column
    return Tables(
        protocol,
        main,
        values,
        counts={
            "queries": len(candidates),
            "candidates": len(label),
            "users": len(np.unique(user)),
            "users_with_both_labels": len(users),
            "positives": int(label.sum()),
        },
        plots={
            "intervals": _intervals(values, replicates),
            "differences": _differences(main, values, replicates),
            "slices": candidate_slices(log, candidates, probabilities),
            "calibration": _calibration(label, probabilities, settings.calibration_bins),
        },
    )


def impression_tables(
    protocol: str,
    lists: CandidateQueries,
    scores: Mapping[str, np.ndarray],
    settings: Evaluate,
    *,
    main: str,
    counts: Mapping[str, int],
    remark: str | None,
    slices: Slices,
) -> Tables:
    """The results of I1, for the report; every list has both labels. `counts` are further ones.

    The bootstrap resamples users with all of their lists.
    """
    of_user, size, label = lists.candidate_user(), np.diff(lists.offsets), lists.label
    found = {
        n: list_metrics(lists.offsets, label, score, settings.list_cutoffs)
        for n, score in scores.items()
    }
    inside = {n: row.pop("auc") for n, row in found.items()}
    values = {
        n: {
            "gauc": float(np.average(inside[n], weights=size)),
            **{metric: float(value.mean()) for metric, value in found[n].items()},
            "auc": metrics.auc(label, score) or 0.0,
        }
        for n, score in scores.items()
    }
    grouped = compare.bootstrap_means(
        lists.user, np.stack([*inside.values()], axis=1), settings, weight=size.astype(float)
    )
    means = compare.bootstrap_metrics(lists.user, found, settings)
    areas = compare.bootstrap_auc(of_user, label, scores, settings)
    replicates = {
        n: {"gauc": gauc, **means[n], "auc": areas[n]}
        for n, gauc in zip(scores, grouped.T, strict=True)
    }
    return Tables(
        protocol,
        main,
        values,
        counts={
            "queries": len(lists),
            "candidates": len(label),
            "users": len(np.unique(lists.user)),
            "positives": int(label.sum()),
            **counts,
        },
        plots={
            "intervals": _intervals(values, replicates),
            "differences": _differences(main, values, replicates),
            "slices": slice_table(
                slices,
                {n: {"gauc": inside[n], **row} for n, row in found.items()},
                ["gauc", f"ndcg@{settings.list_cutoffs[0]}"],
                {"gauc": size},
            ),
        },
        remark=remark,
    )


def repeated_targets(log: EventLog, queries: Queries) -> int:
    """Number of queries whose hidden item the user had met before."""
    user, item = log.user_of_event(), np.asarray(log.item, dtype=np.int64)
    key = user * log.meta.num_items + item
    _, first = np.unique(key, return_index=True)
    repeat = np.ones(len(key), dtype=bool)
    repeat[first] = False
    return int(repeat[queries.row].sum())


def _intervals(values: Values, replicates: Replicates) -> pd.DataFrame:
    rows = []
    for model, by_metric in replicates.items():
        for metric, sample in by_metric.items():
            found = compare.estimate(values[model][metric], sample)
            rows.append((model, metric, found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=["model", "metric", "value", "low", "high"])


def _differences(main: str, values: Values, replicates: Replicates) -> pd.DataFrame:
    rows = []
    for other in [model for model in replicates if model != main]:
        for metric, sample in replicates[main].items():
            found = compare.estimate(
                values[main][metric] - values[other][metric], sample - replicates[other][metric]
            )
            rows.append((main, other, metric, found.value, found.low, found.high, found.p))
    columns = ["model", "against", "metric", "difference", "low", "high", "p"]
    return pd.DataFrame(rows, columns=columns)


def query_slices(log: EventLog, queries: Queries, per_query: Replicates, k: int) -> pd.DataFrame:
    """HR and NDCG at `k` of R1 or R2 by slice, from every model's metrics of each query [Q]."""
    slices = reported_slices(log, queries.user, queries.visible(log), queries.row)
    return slice_table(slices, per_query, [f"hr@{k}", f"ndcg@{k}"])


def candidate_slices(
    log: EventLog, candidates: LabelledQueries, probabilities: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """AUC and GAUC of K1 by slice, whose `queries` are candidates; NaN where not defined."""
    user, label = candidates.candidate_user(), candidates.label
    visible = np.repeat(candidates.visible(log), np.diff(candidates.offsets))
    rows = [
        (
            name, int(mask.sum()), model,
            metrics.auc(label[mask], score[mask]),
            metrics.gauc(user[mask], label[mask], score[mask]),
        )
        for name, mask in reported_slices(log, user, visible, candidates.row).items()
        if mask.any()
        for model, score in probabilities.items()
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["slice", "queries", "model", "auc", "gauc"])
    return table.astype({"auc": float, "gauc": float})


def slice_table(
    slices: Slices,
    per_query: Replicates,
    names: Sequence[str],
    weights: Mapping[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Means of the metrics `names` by slice and model; a slice without a query is left out.

    `weights` holds those of the queries [Q], by metric, where they do not all count the same.
    """
    of = {m: np.ones(len(next(iter(slices.values())))) for m in names} | dict(weights or {})
    rows = [
        (
            name, int(mask.sum()), model,
            *(float(np.average(by_metric[m][mask], weights=of[m][mask])) for m in names),
        )
        for name, mask in slices.items()
        if mask.any()
        for model, by_metric in per_query.items()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["slice", "queries", "model", *names])


def _curves(outcomes: Mapping[str, Retrieved], deepest: int) -> pd.DataFrame:
    cutoffs = np.unique(np.geomspace(1, deepest, CURVE_POINTS).round().astype(int))
    rows = [
        (model, int(k), float(metrics.hit_rate(outcome.ranks, k).mean()))
        for model, outcome in outcomes.items()
        for k in cutoffs
    ]
    return pd.DataFrame(rows, columns=["model", "k", "hr"])


def _popularity(
    outcomes: Mapping[str, Retrieved], classes: np.ndarray, target: np.ndarray
) -> pd.DataFrame:
    """Shares of the recommended places by popularity class; `hidden items` is what users took."""
    shown: dict[str, np.ndarray] = {"hidden items": target[target >= FIRST_ITEM]}
    shown |= {model: o.top[o.top >= FIRST_ITEM] for model, o in outcomes.items()}
    rows = [
        (model, name, float((classes[items] == i).mean()) if len(items) else 0.0)
        for model, items in shown.items()
        for i, name in enumerate(CLASSES)
    ]
    return pd.DataFrame(rows, columns=["model", "popularity", "share"])


def _calibration(
    label: np.ndarray, probabilities: Mapping[str, np.ndarray], bins: int
) -> pd.DataFrame:
    rows = [
        (model, float(p), float(o), int(n))
        for model, probability in probabilities.items()
        for p, o, n in zip(*metrics.calibration(label, probability, bins), strict=True)
    ]
    return pd.DataFrame(rows, columns=["model", "predicted", "observed", "candidates"])


def merged(tables: Sequence[Tables]) -> dict[str, pd.DataFrame]:
    """The long tables of several protocols, one under the other, by name."""
    parts: dict[str, dict[str, pd.DataFrame]] = {}
    for table in tables:
        for name, frame in table.plots.items():
            parts.setdefault(name, {})[table.protocol] = frame
    return {
        name: pd.concat(frames, names=["protocol"]).reset_index("protocol")
        for name, frames in parts.items()
    }
