"""The results of a judged cell: one file a protocol, PROTOCOL-DATASET-MODEL-SEED.json.

They are made beside the cell's evaluation, so that DVC brings back both together, and published to
benchmarks/results/, which git keeps.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpgr.runtime import atomic_folder, read_json, write_json, write_text

if TYPE_CHECKING:
    from benchmarks.matrix import Cell

RESULTS = Path("benchmarks/results")


def write_results(cell: Cell, evaluate_seconds: float) -> None:
    """Write the metrics on test, and what made them, to the cell's `results` folder."""
    workspace = cell.workspace
    model = network(cell)
    trained = read_json(workspace.finetuned / "metrics.json")
    first = read_json(workspace.pretrained / "metrics.json").get("train_seconds", 0.0)
    with atomic_folder(cell.results) as folder:
        for protocol, rows in read_json(workspace.evaluation / "metrics.json").items():
            record = {
                "protocol": protocol,
                "dataset": cell.dataset,
                "split": cell.split,
                "model": cell.model,
                "seed": int(cell.seed),
                "metrics": rows[model],
                "num_params": trained["num_params"],
                "seconds": round(first + trained["train_seconds"] + evaluate_seconds, 1),
                "train_seconds": trained["train_seconds"],
                "events_per_second": trained["events_per_second"],
                "steps": trained["steps"],
                "best_step": trained["best_step"],
                "epochs": trained["epochs"],
                "trained_on": trained["trained_on"],
                "machine": machine(),
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "commit": commit(),
                "command": f"python -m flows.benchmark --only {cell}",
                "same_queries": {n: row for n, row in rows.items() if n not in (model, "counts")},
            }
            write_json(folder / f"{protocol}-{cell.dataset}-{cell.model}-{cell.seed}.json", record)


def write_measured(path: Path, script: str, figures: dict[str, Any], **made_by: Any) -> None:
    """Write the figures that a script of this folder printed, and what made them.

    Args:
        path: of the file.
        script: name of the script; its arguments are those of this process.
        figures: as printed.
        made_by: sections of the configuration of what was measured.
    """
    record = {
        "command": shlex.join(["python", f"benchmarks/{script}", *map(_portable, sys.argv[1:])]),
        "figures": figures,
        **made_by,
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
    }
    write_text(path, json.dumps(record, indent=2) + "\n")


def _portable(argument: str) -> str:
    """The argument, or the last name of a path that only this machine has."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def network(cell: Cell) -> str:
    """The name that the cell's network has in its evaluation."""
    return str(read_json(cell.workspace.finetuned / "config.json")["model"]["name"])


def publish(cell: Cell) -> list[Path]:
    """Copy the cell's results to benchmarks/results/ where they differ; returns all of them."""
    published = []
    for path in sorted(cell.results.glob("*.json")):
        target, text = RESULTS / path.name, path.read_text(encoding="utf-8")
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            write_text(target, text)
        published.append(target)
    return published


def seconds(dataset: str, split: str, model: str) -> float | None:
    """Seconds that a cell like this took: the mean over the most similar published results."""
    alike: dict[int, list[float]] = {}
    for path in RESULTS.glob("*.json"):
        found: dict[str, Any] = read_json(path)
        if "dataset" not in found or "train_seconds" not in found:
            continue
        split_of = "leave-one-out" if found["protocol"].startswith("R1") else "global-time"
        likeness = 4 * (found["dataset"] == dataset)
        likeness += 2 * (found["model"] == model) + (split_of == split)
        alike.setdefault(likeness, []).append(found.get("seconds", found["train_seconds"]))
    if not alike or max(alike) < 4:  # a log of another size says nothing
        return None
    best = alike[max(alike)]
    return sum(best) / len(best)


def commit() -> str:
    """The commit at hand, with `+` where tracked files differ from it; empty outside git."""
    head = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{RESULTS}")
    return f"{head}+" if changed else head


def machine() -> str:
    """Processor, cores and the threads that torch used, in words."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()
