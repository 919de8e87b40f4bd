"""The results of a judged cell: one file a protocol, PROTOCOL-DATASET-MODEL-SEED.json.

They are made beside the cell's evaluation, so that DVC brings back both together, and published to
benchmarks/results/, which git keeps.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpgr.runtime import UserError, atomic_folder, read_json, write_text

if TYPE_CHECKING:
    from benchmarks.matrix import Cell

RESULTS = Path("benchmarks/results")
FLAT_LIST = re.compile(r"\[\n[^\[\]{}]*\]")


def write_results(cell: Cell, evaluate_seconds: float) -> None:
    """Write the metrics on test, and what made them, to the cell's `results` folder."""
    from benchmarks.cell_parts import network, parts  # pandas: stages before it need none

    workspace = cell.workspace
    model = network(cell)
    trained = read_json(workspace.finetuned / "metrics.json")
    first = read_json(workspace.pretrained / "metrics.json").get("train_seconds", 0.0)
    further = parts(cell)
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
                **further[protocol],
            }
            name = f"{protocol}-{cell.dataset}-{cell.model}-{cell.seed}.json"
            write_text(folder / name, as_text(record))


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


def as_text(record: dict[str, Any]) -> str:
    """The record as indented JSON, a list of plain values on one line."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    return FLAT_LIST.sub(lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text) + "\n"


def publish(cell: Cell) -> list[Path]:
    """Put the cell's results into benchmarks/results/ where they differ; returns all of them."""
    from benchmarks.cell_parts import parts

    published = []
    for path in sorted(cell.results.glob("*.json")):
        target, record = RESULTS / path.name, read_json(path)
        if "curve" not in record:
            record |= parts(cell)[record["protocol"]]
        if not target.is_file() or read_json(target) != record:
            write_text(target, as_text(record))
        published.append(target)
    return published


def complete(cell: Cell) -> list[Path]:
    """Give the committed results of a judged cell their curve and slices, and change nothing else.

    Results that are not there yet are published as they are.

    Raises:
        UserError: a committed result has other metrics than the cell's evaluation.
    """
    from benchmarks.cell_parts import network, parts

    judged, own, records = read_json(cell.workspace.evaluation / "metrics.json"), network(cell), {}
    for path in sorted(cell.results.glob("*.json")):
        target = RESULTS / path.name
        record = read_json(target if target.is_file() else path)
        if record["metrics"] != judged[record["protocol"]][own]:
            raise UserError(
                f"{target} has other metrics than the evaluation of {cell}, so that it stays as it "
                "is: evaluate the cell anew to replace it"
            )
        records[target] = record
    found = parts(cell)
    for target, record in records.items():
        write_text(target, as_text(record | found[record["protocol"]]))
    return [*records]


def seconds(dataset: str, split: str, model: str) -> float | None:
    """Seconds that a cell like this took: the mean over the most similar published results."""
    alike: dict[int, list[float]] = {}
    for path in RESULTS.glob("*.json"):
        found: dict[str, Any] = read_json(path)
        if "dataset" not in found or "train_seconds" not in found:
            continue
        likeness = 4 * (found["dataset"] == dataset)
        likeness += 2 * (found["model"] == model) + (split_of(found["protocol"]) == split)
        alike.setdefault(likeness, []).append(found.get("seconds", found["train_seconds"]))
    if not alike or max(alike) < 4:  # a log of another size says nothing
        return None
    best = alike[max(alike)]
    return sum(best) / len(best)


def split_of(protocol: str) -> str:
    """The split under which a protocol is judged."""
    return "leave-one-out" if protocol.startswith("R1") else "global-time"


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
