"""The worth of each part of HPGR: models without it, trained anew, beside the whole.

    python -m benchmarks.ablations [--write]

Reads benchmarks/results/*.json and the models of benchmarks/params.yaml. Prints Markdown; with
--write it replaces what stands between the markers in docs/ablations.md. A difference is that of
runs with the same seed, on test.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.results_file import split_of
from benchmarks.table import NAMES, RESULTS, ROOT, TITLES, between_markers, spans
from hpgr.params_file import read_params
from hpgr.runtime import read_json, write_text

PAGE = ROOT / "docs" / "ablations.md"
COLUMNS = {
    "R1": {"ndcg@10": "NDCG@10", "hr@10": "HR@10"},
    "R2": {"ndcg@10": "NDCG@10", "hr@10": "HR@10"},
    "B1": {"ndcg@10": "NDCG@10", "recall@10": "recall@10"},
    "K1": {"auc": "AUC", "gauc": "GAUC"},  # log loss would also show how a run was calibrated
}
RANKING = ("hpgr", "hpgr-short")  # both trained for rankings
# What a part is taken from: the model with the same profile, else the first.
WHOLES = {"R1": ("hpgr-quick", "hpgr"), "R2": RANKING, "B1": RANKING, "K1": RANKING}
Runs = dict[int, dict[str, Any]]  # seed -> result


def described(protocol: str, path: Path = ROOT / "benchmarks/params.yaml") -> dict[str, str]:
    """Models that differ from their profile, as one without a part does, and their wholes."""
    models, split = read_params(path)["models"], split_of(protocol)
    found = {}
    for name, model in models.items():
        if "set" in model:
            same = [w for w in WHOLES[protocol] if models[w][split] == model.get(split)]
            found[name] = (same or WHOLES[protocol])[0]
    return found


def tables() -> str:
    """All tables, one after the other."""
    return "\n".join(
        table(f"{TITLES[protocol]}, {dataset}", protocol, name, whole, runs)
        for protocol, dataset, name, whole, runs in comparisons()
    )


def comparisons() -> Iterator[tuple[str, str, str, Runs, dict[str, Runs]]]:
    """Protocol, data set, the whole's name and runs, and those of each model beside it, by seed."""
    for protocol in COLUMNS:
        found: dict[tuple[str, str], Runs] = {}
        for path in sorted(RESULTS.glob(f"{protocol}-*.json")):
            result = read_json(path)
            found.setdefault((result["dataset"], result["model"]), {})[result["seed"]] = result
        beside = described(protocol)
        for dataset, whole in product(sorted({dataset for dataset, _ in found}), WHOLES[protocol]):
            of_whole = found.get((dataset, whole), {})
            runs = {
                name: found.get((dataset, name), {}) for name, w in beside.items() if w == whole
            }
            runs = {name: own for name, own in runs.items() if own.keys() & of_whole.keys()}
            if runs:
                yield protocol, dataset, whole, of_whole, runs


def distances(metric: str, whole: Runs, own: Runs) -> list[float]:
    """A metric's distance from the whole, once for each seed that both have."""
    seeds = sorted(own.keys() & whole.keys())
    return [own[seed]["metrics"][metric] - whole[seed]["metrics"][metric] for seed in seeds]


def table(title: str, protocol: str, name: str, whole: Runs, runs: dict[str, Runs]) -> str:
    """One protocol and data set: the whole, then each model and its distance from the whole."""
    columns = COLUMNS[protocol]
    lines = [
        f"{title}:\n",
        f"| model | {' | '.join(columns.values())} | seeds | best step |",
        "|---|" + "---|" * (len(columns) + 2),
    ]
    values = {c: [run["metrics"][c] for run in whole.values()] for c in columns}
    cells = [spread(values[c]) for c in columns]
    lines.append(row(NAMES.get(name, name), cells, whole))
    for other, own in runs.items():
        cells = [spread(distances(c, whole, own), signed=True) for c in columns]
        lines.append(row(other, cells, own))
    judged = [run for own in (whole, *runs.values()) for run in own.values()]
    machines = spans(judged, "machine")
    lines.append(f"\n{machines}; a row below the first is the distance from it.\n")
    return "\n".join(lines)


def row(name: str, cells: list[str], runs: Runs) -> str:
    """One line of a table, with the seeds and the steps of the best validation."""
    best = ", ".join(f"{run['best_step']:,}" for _, run in sorted(runs.items()))
    return f"| {' | '.join([name, *cells, str(len(runs)), best])} |"


def spread(values: list[float], *, signed: bool = False) -> str:
    """Mean, with the standard deviation where there are several values."""
    text = f"{statistics.fmean(values):{'+' if signed else ''}.4f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.4f}"
    return text.replace("0.", ".")


def main() -> None:
    """Print the tables or write them into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        write_text(PAGE, between_markers(PAGE.read_text(encoding="utf-8"), tables()))
    else:
        print(tables(), end="")


if __name__ == "__main__":
    main()
