"""Two networks of the benchmark on the same queries: paired differences with their intervals.

    python -m benchmarks.paired hpgr hstu

Compares every pair of finished cells that differ in the model alone. Users are resampled, as in
the report of a run. Reads benchmarks/cells/; prints one line a metric and writes nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd

from benchmarks.matrix import Cell, read_matrix
from benchmarks.results_file import network
from hpgr import metrics
from hpgr.cli import run
from hpgr.config import load_config
from hpgr.evaluation.compare import Estimate, bootstrap_auc, bootstrap_means, estimate
from hpgr.runtime import UserError

QUERY = ["user", "target", "request_time"]
BASKET = ["user", "request_time", "items", "new_items"]
CANDIDATE = ["user", "item", "request_time", "label"]


def differences(first: Cell, second: Cell) -> dict[str, Estimate]:
    """Metric to its difference, `first` minus `second`.

    Raises:
        UserError: the cells were not judged on the same queries.
    """
    settings = load_config(first.workspace.params).evaluate
    cells = (first, second)
    k = settings.cutoffs[0]
    queries, ranks = _both(first, second, "queries.parquet", QUERY, "rank")
    found = {}
    per_query = {f"hr@{k}": metrics.hit_rate, f"ndcg@{k}": metrics.ndcg}
    for name, metric in per_query.items():
        gain = metric(ranks[0], k) - metric(ranks[1], k)
        sample = bootstrap_means(queries["user"].to_numpy(), gain[:, None], settings)
        found[name] = estimate(gain.mean(), sample[:, 0])
    if all((cell.workspace.evaluation / "baskets.parquet").is_file() for cell in cells):
        k = settings.basket_cutoffs[0]
        for column in (f"recall@{k}", f"ndcg@{k}", f"new_recall@{k}", f"new_ndcg@{k}"):
            baskets, values = _both(first, second, "baskets.parquet", BASKET, column)
            gain = values[0] - values[1]
            asked = ~np.isnan(gain)  # of new items, where the basket holds some
            if asked.any():
                user, gain = baskets["user"].to_numpy()[asked], gain[asked]
                sample = bootstrap_means(user, gain[:, None], settings)
                found[f"B1 {column}"] = estimate(gain.mean(), sample[:, 0])
    if all((cell.workspace.evaluation / "candidates.parquet").is_file() for cell in cells):
        rows, score = _both(first, second, "candidates.parquet", CANDIDATE, "probability")
        user, label = rows["user"].to_numpy(), rows["label"].to_numpy()
        sampled = bootstrap_auc(user, label, {"first": score[0], "second": score[1]}, settings)
        own, other = (metrics.auc(label, column) or np.nan for column in score)
        found["auc"] = estimate(own - other, sampled["first"] - sampled["second"])
    return found


def pairs(cells: list[Cell], models: tuple[str, str] | None = None) -> Iterator[tuple[Cell, Cell]]:
    """Judged cells that differ in the model alone; `models` picks one pair of models."""
    done = [c for c in cells if (c.workspace.evaluation / "queries.parquet").is_file()]
    for number, first in enumerate(done):
        for second in done[number + 1 :]:
            ordered = (first, second)
            if models is not None and models == (second.model, first.model):
                ordered = (second, first)
            elif models is not None and models != (first.model, second.model):
                continue
            if first._replace(model="") == second._replace(model=""):
                yield ordered


def lines(first: Cell, second: Cell) -> Iterator[str]:
    """The comparison of two cells as text."""
    yield f"{first.model} minus {second.model}: {first.dataset}, {first.split}, seed {first.seed}"
    for name, found in differences(first, second).items():
        yield (
            f"  {metrics.metric_label(name)} {found.value:+.4f}, 95 % interval "
            f"{found.low:+.4f} to {found.high:+.4f}, p {found.p:.3f}"
        )


def _both(
    first: Cell, second: Cell, file: str, key: list[str], column: str
) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """The rows of one cell's table, and both networks' own column."""
    tables, values = [], []
    for cell in (first, second):
        table = pd.read_parquet(cell.workspace.evaluation / file)
        tables.append(table[key])
        values.append(table[f"{column}_{network(cell)}"].to_numpy())
    if not tables[0].equals(tables[1]):
        raise UserError(
            f"{first} and {second} were judged on different rows of {file}: one of them is out of "
            "date. Run `hpgr benchmark`, which runs what is not current"
        )
    return tables[0], values


def main(models: tuple[str, str]) -> None:
    """Print every comparison of two models."""
    found = [line for pair in pairs(read_matrix().cells, models) for line in lines(*pair)]
    if not found:
        raise UserError(
            f"no finished cells of {' and '.join(models)} that differ in the model alone: run "
            "`hpgr benchmark` first"
        )
    print("\n".join(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs=2, metavar="MODEL")
    run(partial(main, tuple(parser.parse_args().models)))
