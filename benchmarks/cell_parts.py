"""Parts of a result beside its means: validation by step, and the metrics by slice.

An evaluation older than a slice is sliced anew, from its answers to every query. Reads a cell's
workspace, writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hpgr import metrics
from hpgr.data.log import TEST, EventLog
from hpgr.evaluation import protocols
from hpgr.evaluation.headline import model_of
from hpgr.evaluation.metric_tables import candidate_slices, query_slices
from hpgr.params_file import read_params
from hpgr.runtime import UserError, read_json

if TYPE_CHECKING:
    from benchmarks.matrix import Cell

KEY = ["slice", "queries", "model"]
DIGITS = 5


def network(cell: Cell) -> str:
    """The name that the cell's network has in its evaluation."""
    return str(read_json(cell.workspace.finetuned / "config.json")["model"]["name"])


def parts(cell: Cell) -> dict[str, dict[str, Any]]:
    """`curve` and `slices` of each protocol of a judged cell, as `curve` and `columns` give them.

    Raises:
        UserError: the answers are not to the queries of the cell's log.
    """
    by_step = curve(cell)
    found = {p: {"curve": by_step} for p in read_json(cell.workspace.evaluation / "metrics.json")}
    for protocol, rows in sliced(cell).groupby("protocol", sort=False):
        found[str(protocol)]["slices"] = columns(rows, network(cell), cell.model)
    return found


def curve(cell: Cell) -> dict[str, list[float | None]]:
    """Metric of validation to its values, beside their `step`."""
    table = pd.read_csv(cell.workspace.finetuned / "curves.csv")
    names = [name for name in table.columns if name.startswith("validation_")]
    table = table.dropna(subset=names, how="all")
    found = {name.removeprefix("validation_"): _plain(table[name]) for name in names}
    return {"step": table["step"].astype(int).tolist(), **found}


def sliced(cell: Cell) -> pd.DataFrame:
    """Protocol, slice, queries, model and a column a metric; anew where slices are missing."""
    path = cell.workspace.evaluation / "plots/slices.csv"
    if path.is_file():
        rows = pd.read_csv(path)
        if rows["slice"].str.startswith("history").any():
            return rows
    return of_answers(cell)


def of_answers(cell: Cell) -> pd.DataFrame:
    """The slices of R1, R2 and K1 from the answers to their queries.

    Raises:
        UserError: the answers are not to the queries of the cell's log.
    """
    log = EventLog.open(cell.workspace.arrays)
    files = cell.workspace.evaluation
    k = read_params(cell.workspace.params)["evaluate"]["cutoffs"][0]
    queries = protocols.next_item(log, TEST)
    rows = pd.read_parquet(files / "queries.parquet")
    _check(cell, rows, {"user": queries.user, "target": queries.target})
    answers = {n: metrics.retrieval_metrics(r, [k]) for n, r in _models(rows, "rank_").items()}
    protocol = "R1" if log.meta.split == "leave-one-out" else "R2"
    found = {protocol: query_slices(log, queries, answers, k)}
    if (files / "candidates.parquet").is_file():
        asked = protocols.labelled(log, TEST)
        rows = pd.read_parquet(files / "candidates.parquet")
        _check(cell, rows, {"user": asked.candidate_user(), "item": asked.item})
        found["K1"] = candidate_slices(log, asked, _models(rows, "probability_"))
    return pd.concat(found, names=["protocol"]).reset_index("protocol")


def columns(rows: pd.DataFrame, network: str, model: str) -> dict[str, Any]:
    """Names of the slices, their `queries` and, by metric and model, the values; None: no value.

    Args:
        rows: slice, queries, model and metrics.
        network: the name of the judged model there.
        model: its name in the benchmark.
    """
    first = rows.drop_duplicates("slice")
    found: dict[str, Any] = {"slice": first["slice"].tolist()}
    found["queries"] = first["queries"].astype(int).tolist()
    for metric in rows.columns.drop([*KEY, "protocol"], errors="ignore"):
        if rows[metric].notna().any():
            found[metric] = {
                model + name.removeprefix(network) if model_of(name) == network else name: _plain(
                    own[metric]
                )
                for name, own in rows.groupby("model", sort=False)
            }
    return found


def _plain(values: pd.Series) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), DIGITS) for value in values]


def _models(rows: pd.DataFrame, prefix: str) -> dict[str, np.ndarray]:
    """Column of each model, by its name."""
    own = [name for name in rows.columns if name.startswith(prefix)]
    return {name.removeprefix(prefix): rows[name].to_numpy() for name in own}


def _check(cell: Cell, rows: pd.DataFrame, expected: dict[str, np.ndarray]) -> None:
    if any(not np.array_equal(rows[name], values) for name, values in expected.items()):
        raise UserError(
            f"{cell}: its answers are not to the queries of {cell.workspace.sessions}: one of them "
            "is out of date. Run `hpgr benchmark`, which runs what is not current"
        )
