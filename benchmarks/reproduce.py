"""Run rows of the table again and hold them against what is committed.

    python benchmarks/reproduce.py DATASET/SPLIT/MODEL/SEED ... [--out FILE]

To be run in a fresh clone: each cell trains from nothing, and its results replace the committed
ones of the working copy. A metric agrees where it lies within two standard deviations of the seeds
that are committed for its model. Fewer than three seeds can understate that: one hundredth of the
value is then allowed where it is more.

Writes benchmarks/results/reproduced.json: each metric as committed and as found. The exit code is
not 0 where one does not agree. The last line is a JSON object of the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.matrix import Cell, run_cell
from benchmarks.results_file import RESULTS, write_measured
from benchmarks.table import COLUMNS
from hpgr.cli import run
from hpgr.runtime import UserError, read_json

FEW = 0.01  # relative, of a model with one seed or two


def committed(cell: Cell) -> dict[str, list[dict[str, Any]]]:
    """Protocol to the committed results of the cell's model, its own seed first.

    Raises:
        UserError: there are none of the cell.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for protocol in COLUMNS:
        name = f"{protocol}-{cell.dataset}-{cell.model}"
        own = RESULTS / f"{name}-{cell.seed}.json"
        others = [path for path in sorted(RESULTS.glob(f"{name}-[0-9]*.json")) if path != own]
        if own.is_file() and (first := read_json(own))["split"] == cell.split:
            found[protocol] = [first, *map(read_json, others)]
    if not found:
        raise UserError(
            f"{RESULTS} has no results of {cell}: expected a cell of which a row is committed"
        )
    return found


def agreement(before: list[dict[str, Any]], after: dict[str, Any]) -> dict[str, Any]:
    """Metric to what was committed and found, the distance that is allowed, and the verdict."""
    rows = {}
    for metric in COLUMNS[after["protocol"]]:
        values = [result["metrics"][metric] for result in before]
        allowed = 2 * statistics.stdev(values) if len(values) > 1 else 0.0
        if len(values) < 3:
            allowed = max(allowed, FEW * abs(values[0]))
        distance = abs(after["metrics"][metric] - values[0])
        rows[metric] = {
            "committed": values[0],
            "found": after["metrics"][metric],
            "allowed": round(allowed, 6),
            "agrees": bool(distance <= allowed),
        }
    return rows


def main() -> None:
    """Run the cells that the command line names.

    Raises:
        UserError: a name is not a cell's, nothing is committed of it, or a metric does not agree.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cells", nargs="+")
    parser.add_argument("--out", type=Path, default=RESULTS / "reproduced.json")
    asked = parser.parse_args()
    cells = []
    for name in asked.cells:
        if len(parts := name.split("/")) != len(Cell._fields):
            raise UserError(f"found {name!r}, expected DATASET/SPLIT/MODEL/SEED")
        cells.append(Cell(*parts))
    before = {cell: committed(cell) for cell in cells}
    figures: dict[str, Any] = {}
    for cell in cells:
        run_cell(cell)
        for protocol, results in before[cell].items():
            name = f"{protocol}-{cell.dataset}-{cell.model}-{cell.seed}"
            figures[name] = agreement(results, read_json(cell.results / f"{name}.json"))
            write_measured(asked.out, "reproduce.py", figures)
    print(json.dumps(figures))
    apart = [name for name, rows in figures.items() if not all(r["agrees"] for r in rows.values())]
    if apart:
        raise UserError(f"{', '.join(apart)}: expected what is committed, see {asked.out}")


if __name__ == "__main__":
    run(main)
