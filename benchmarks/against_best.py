"""Each model of a table against the best other one, paired over users.

The best other one is that of the committed results, by the mean over its seeds; of both the seeds
whose cells are at hand are compared, and a cell takes part only if its evaluation is what is
committed. Reads benchmarks/cells/ and benchmarks/results/. Writes
benchmarks/results/paired-DATASET-SPLIT.json: a comparison from an earlier run stays where it has
more seeds, or no cell is at hand, as long as the committed results give its difference.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.matrix import Cell, read_matrix, settings
from benchmarks.paired_answers import MEASURES, Answers
from benchmarks.results_file import as_text, commit, split_of
from hpgr.config import Evaluate
from hpgr.evaluation.compare import Estimate
from hpgr.evaluation.headline import model_of
from hpgr.runtime import UserError, read_json, write_text


def write() -> list[Path]:
    """Write the comparisons of every data set and split with some; returns the files.

    Raises:
        UserError: no model of a table can be compared with the best other one.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for protocol, dataset, results in table.headlines():
        if protocol in MEASURES:
            place = (dataset, split_of(protocol))
            old = table.against_best(protocol, dataset, results)
            found.setdefault(place, []).extend(merged(old, compared(protocol, results)))
    paths = []
    for (dataset, split), rows in found.items():
        if rows:
            record = {
                "dataset": dataset,
                "split": split,
                "command": "python -m benchmarks.paired --write",
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "commit": commit(),
                "comparisons": rows,
            }
            paths.append(table.RESULTS / f"paired-{dataset}-{split}.json")
            write_text(paths[-1], as_text(record))
    if not paths:
        raise UserError("no judged cells of two models of a table at hand: run `hpgr benchmark`")
    return paths


def compared(protocol: str, results: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A comparison a model and metric of one table, for models whose cells are at hand.

    Args:
        protocol: of the table.
        results: what is committed of it.
    """
    rows = table.rows(table.COLUMNS[protocol], results)
    answers = {row.name: [*at_hand(row, protocol, results)] for row in rows}

    @cache
    def differences(own: str, other: str) -> dict[str, Estimate]:
        of_split = Cell(results[0]["dataset"], split_of(protocol))  # a cell's own may be older
        evaluate = Evaluate.model_validate(settings(of_split, read_matrix())["evaluate"])
        return MEASURES[protocol].compare(answers[own], answers[other], evaluate)

    for row in rows:
        for metric in table.COMPARED[protocol] if row.trained and answers[row.name] else ():
            best = table.best_other(row, metric, rows)
            if best is None or not answers[best.name]:
                continue
            found = differences(row.name, best.name)[metric]
            yield {
                "protocol": protocol,
                "metric": metric,
                "model": row.name,
                "against": best.name,
                "difference": round(found.value, 6),
                "low": round(found.low, 6),
                "high": round(found.high, 6),
                "p": round(found.p, 4),
                "seeds": seeds(answers[row.name]),
                "against_seeds": seeds(answers[best.name]) if best.trained else [],
            }


def at_hand(row: table.Row, protocol: str, results: list[dict[str, Any]]) -> Iterator[Answers]:
    """The answers behind a row: a network's in each cell, a baseline's in one that gave its values.

    Args:
        row: of the table.
        protocol: of the table.
        results: what is committed of it.
    """
    for result in row.trained or results:
        name, seed = result["model"], str(result["seed"])
        cell = Cell(result["dataset"], split_of(protocol), name, seed)
        path = cell.workspace.evaluation / "metrics.json"
        if not path.is_file():
            continue
        judged = read_json(path)[protocol]
        own = Answers.of_network(cell)
        if judged[own.model] != result["metrics"]:
            continue
        if row.trained:
            yield own
        elif judged.get(row.name) == row.metrics[0] and model_of(row.name) == row.name:
            yield Answers(cell, row.name)
            return


def seeds(answers: list[Answers]) -> list[int]:
    """Seeds of a network's answers."""
    return [int(one.cell.seed) for one in answers]


def merged(old: list[dict[str, Any]], new: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """One comparison a model and metric: the newer one, but for an older one of more seeds."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in (*old, *new):
        key = (one["model"], one["metric"])
        if key not in found or number_of_seeds(one) >= number_of_seeds(found[key]):
            found[key] = one
    return [*found.values()]


def number_of_seeds(comparison: dict[str, Any]) -> int:
    """Seeds of both models."""
    return len(comparison["seeds"]) + len(comparison["against_seeds"])
