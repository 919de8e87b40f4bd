"""Paired differences of the benchmark's models, from their answers to every query.

A model may have several seeds: of each query the mean over them counts. Users are resampled, as in
the report of a run. Reads benchmarks/cells/, writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmarks.cell_parts import network
from benchmarks.matrix import Cell
from hpgr import metrics
from hpgr.config import Evaluate
from hpgr.evaluation.compare import Estimate, bootstrap_auc, bootstrap_means, estimate
from hpgr.runtime import UserError

QUERY = ["user", "target", "request_time"]
BASKET = ["user", "request_time", "items", "new_items"]
CANDIDATE = ["user", "item", "request_time", "label"]


class Answers(NamedTuple):
    """One model's answers in a cell: those of its network, or of a baseline judged beside it."""

    cell: Cell
    model: str

    @classmethod
    def of_network(cls, cell: Cell) -> Answers:
        """The answers of the cell's own network."""
        return cls(cell, network(cell))


Seeds = Sequence[Answers]  # of one model


def of_queries(first: Seeds, second: Seeds, settings: Evaluate) -> dict[str, Estimate]:
    """R1, R2: metric to `first` minus `second`.

    Raises:
        UserError: they were not judged on the same queries; so in the functions below.
    """
    k = settings.cutoffs[0]
    queries, ranks = _both(first, second, "queries.parquet", QUERY, "rank")
    per_query = {f"hr@{k}": metrics.hit_rate, f"ndcg@{k}": metrics.ndcg}
    found = {}
    for name, metric in per_query.items():
        own, other = (metric(side, k).mean(axis=0) for side in ranks)
        found[name] = _of_means(queries, own, other, settings)
    return found


def of_baskets(first: Seeds, second: Seeds, settings: Evaluate) -> dict[str, Estimate]:
    """B1: metric to `first` minus `second`."""
    return _of_baskets(first, second, settings, "")


def of_new_items(first: Seeds, second: Seeds, settings: Evaluate) -> dict[str, Estimate]:
    """B1 of new items alone: metric to `first` minus `second`."""
    return _of_baskets(first, second, settings, "new_")


def _of_baskets(first: Seeds, second: Seeds, settings: Evaluate, new: str) -> dict[str, Estimate]:
    k, found = settings.basket_cutoffs[0], {}
    for name in (f"recall@{k}", f"ndcg@{k}"):
        baskets, values = _both(first, second, "baskets.parquet", BASKET, f"{new}{name}")
        own, other = (value.mean(axis=0) for value in values)
        asked = ~np.isnan(own - other)  # of new items, where the basket holds some
        if asked.any():
            found[name] = _of_means(baskets[asked], own[asked], other[asked], settings)
    return found


def of_candidates(first: Seeds, second: Seeds, settings: Evaluate) -> dict[str, Estimate]:
    """K1: metric to `first` minus `second`."""
    rows, scores = _both(first, second, "candidates.parquet", CANDIDATE, "probability")
    user, label = rows["user"].to_numpy(), rows["label"].to_numpy()
    named = {f"{side} {seed}": s for side in (0, 1) for seed, s in enumerate(scores[side])}
    sampled = bootstrap_auc(user, label, named, settings)
    areas = [[metrics.auc(label, score) or np.nan for score in side] for side in scores]
    drawn = [
        np.mean([sampled[f"{side} {seed}"] for seed in range(len(scores[side]))], axis=0)
        for side in (0, 1)
    ]
    difference = float(np.mean(areas[0]) - np.mean(areas[1]))
    found = {"auc": estimate(difference, drawn[0] - drawn[1])}
    groups = [[metrics.group_auc(user, label, score) for score in side] for side in scores]
    users, _, weight = groups[0][0]
    if len(users):
        own, other = (np.mean([area for _, area, _ in side], axis=0) for side in groups)
        asked = pd.DataFrame({"user": users})
        found["gauc"] = _of_means(asked, own, other, settings, weight.astype(float))
    return found


def _of_means(
    rows: pd.DataFrame,
    own: np.ndarray,
    other: np.ndarray,
    settings: Evaluate,
    weight: np.ndarray | None = None,
) -> Estimate:
    gain = own - other
    sample = bootstrap_means(rows["user"].to_numpy(), gain[:, None], settings, weight=weight)
    return estimate(float(np.average(gain, weights=weight)), sample[:, 0])


def _both(
    first: Seeds, second: Seeds, file: str, key: list[str], column: str
) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """The rows of a table, and both models' own column, [seeds, rows] each."""
    rows, found = None, []
    for side in (first, second):
        values = []
        for cell, model in side:
            table = pd.read_parquet(cell.workspace.evaluation / file)
            if rows is None:
                rows = table[key]
            elif not rows.equals(table[key]):
                raise UserError(
                    f"{first[0].cell} and {cell} were judged on different rows of {file}: one of "
                    "them is out of date. Run `hpgr benchmark`, which runs what is not current"
                )
            values.append(table[f"{column}_{model}"].to_numpy())
        found.append(np.stack(values))
    assert rows is not None, "no seeds"
    return rows, found


class Measure(NamedTuple):
    """A protocol's file of answers, and what compares two models by it."""

    file: str
    compare: Callable[[Seeds, Seeds, Evaluate], dict[str, Estimate]]


MEASURES = {
    "R1": Measure("queries.parquet", of_queries),
    "R2": Measure("queries.parquet", of_queries),
    "B1": Measure("baskets.parquet", of_baskets),
    "B1_new_items": Measure("baskets.parquet", of_new_items),
    "K1": Measure("candidates.parquet", of_candidates),
}
