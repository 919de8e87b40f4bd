"""Two models of the benchmark on the same queries: paired differences with their intervals.

    python -m benchmarks.paired hpgr hstu     finished cells that differ in the model alone
    python -m benchmarks.paired --write       each model of a table and the best other one

Users are resampled, as in the report of a run. Reads benchmarks/cells/; prints one line a metric.
With --write it writes benchmarks/results/paired-DATASET-SPLIT.json instead, as `against_best` says.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

from benchmarks import against_best
from benchmarks.matrix import Cell, read_matrix
from benchmarks.paired_answers import MEASURES, Answers
from hpgr import metrics
from hpgr.cli import run
from hpgr.config import load_config
from hpgr.evaluation.compare import Estimate
from hpgr.runtime import UserError

NAMES = {"R2": "", "B1": "B1 ", "B1_new_items": "B1 new_", "K1": ""}  # before a metric; R1 as R2


def differences(first: Cell, second: Cell) -> dict[str, Estimate]:
    """Metric to its difference between two networks, `first` minus `second`.

    Raises:
        UserError: the cells were not judged on the same queries.
    """
    settings = load_config(first.workspace.params).evaluate
    own, other = ([Answers.of_network(cell)] for cell in (first, second))
    found: dict[str, Estimate] = {}
    for protocol, prefix in NAMES.items():
        file, compare = MEASURES[protocol]
        if all((cell.workspace.evaluation / file).is_file() for cell in (first, second)):
            by_metric = compare(own, other, settings)
            found |= {f"{prefix}{metric}": estimate for metric, estimate in by_metric.items()}
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


def main(models: tuple[str, ...], *, write: bool) -> None:
    """Print every comparison of two models, or write those of the tables.

    Raises:
        UserError: no two models are named, or nothing at hand can be compared.
    """
    if write:
        print("\n".join(map(str, against_best.write())))
        return
    if len(models) != 2:
        raise UserError(f"found {' '.join(models) or 'no model'}, expected two models or --write")
    first, second = models
    chosen = pairs(read_matrix().cells, (first, second))
    found = [line for pair in chosen for line in lines(*pair)]
    if not found:
        raise UserError(
            f"no finished cells of {first} and {second} that differ in the model alone: run "
            "`hpgr benchmark` first"
        )
    print("\n".join(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    run(partial(main, tuple(options.models), write=options.write))
