"""HPGR beside every baseline on small logs that repeat items: length in steps against epochs.

    python benchmarks/small_logs.py FOLDER                      both logs, both lengths, seed 0
    python benchmarks/small_logs.py FOLDER --log trivago --length steps --seed 1
    python benchmarks/small_logs.py FOLDER --seed 1 --prepare   stops before training, which
    python benchmarks/train_light.py build/small-logs/*-1       does on a bare machine with a GPU;
                                    the folders come back, and the first command goes on with them

FOLDER holds `online-retail/` and `trivago/`, each with `interactions.parquet`; their columns are
named below. `steps` is the profile quick; `epochs` is what it was when it counted
them: 3 of stage 1 and 6 of stage 2. A run lives in a folder of its own below build/small-logs/
and resumes from its checkpoint. Writes benchmarks/results/small-LOG-LENGTH-SEED.json: where HPGR
stands on validation, the metrics on test, how the training ended, and the command.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from quality import machine

from hpgr.config import load_config
from hpgr.data.batches import TrainingWindows
from hpgr.data.log import EventLog
from hpgr.profiles import read_overrides, set_params
from hpgr.runtime import read_json, write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COMMON: dict[str, Any] = {
    "data.format": "table",
    "data.path": "data/log",
    "data.interactions": "interactions.parquet",
    "data.columns.categories": None,
    "validate.max_bad_share": 1.0,  # both logs hold exact duplicates, which are left out
    "sessionize.positive_from": None,
    "evaluate.remove_history": False,  # people take the same items again
}
LOGS: dict[str, dict[str, Any]] = {
    "online-retail": {"data.items": "items.parquet"},
    "trivago": {
        "data.columns.action": "event",
        "data.columns.session_id": "session_id",
        "data.columns.title": None,
    },
}
EPOCHS = {"pretrain": 3, "finetune": 6}


def main() -> None:
    """Parse the command line and make every run that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--log", choices=LOGS)
    parser.add_argument("--length", choices=("epochs", "steps"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    source = arguments.folder.resolve(strict=True)
    changes = read_overrides(arguments.set)
    for log in [arguments.log] if arguments.log else LOGS:
        for length in [arguments.length] if arguments.length else ("epochs", "steps"):
            measure(source / log, log, length, arguments.seed, changes, arguments.prepare)


def measure(
    source: Path, log: str, length: str, seed: int, changes: dict[str, Any], prepare: bool
) -> None:
    """One run and its file of results."""
    folder = ROOT / "build" / "small-logs" / f"{log}-{length}-{seed}"
    (folder / "base").mkdir(parents=True, exist_ok=True)
    if not (folder / "data/log").exists():
        shutil.copytree(source, folder / "data/log")
    os.chdir(folder)
    settings = COMMON | LOGS[log] | {"pretrain.seed": seed, "finetune.seed": seed} | changes
    write_params(settings)
    run("validate", "sessionize")
    epoch = batches_per_epoch()
    if length == "epochs":
        settings |= {f"{stage}.steps": count * epoch for stage, count in EPOCHS.items()}
        settings |= {f"{stage}.validate_steps": epoch for stage in EPOCHS}
        write_params(settings | changes)
    if prepare:
        return
    run("pretrain", "finetune", "evaluate")
    trained_on = Path("trained_on.txt")
    target = RESULTS / f"small-{log}-{length}-{seed}.json"
    write_json(
        target,
        {
            "log": log,
            "length": length,
            "seed": seed,
            "events": read_json(Path("artifacts/sessions/arrays/meta.json"))["num_events"],
            "steps_per_epoch": epoch,
            "changed": changes,
            "training": {
                stage: read_json(Path(f"artifacts/{stage}/config.json"))["training"]
                for stage in EPOCHS
            },
            "validation": read_json(Path("artifacts/evaluation/verdict.json")),
            "test": read_json(Path("artifacts/evaluation/metrics.json")),
            "trained_on": trained_on.read_text().strip() if trained_on.exists() else machine(),
            "machine": machine(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "command": "python benchmarks/small_logs.py FOLDER "
            + " ".join([f"--log {log} --length {length} --seed {seed}", *sets(changes)]),
        },
    )
    print(f"wrote {target.relative_to(ROOT)}")


def sets(changes: dict[str, Any]) -> list[str]:
    """The changes as a person would type them."""
    return [f"--set {key}={'' if value is None else value}" for key, value in changes.items()]


def run(*stages: str) -> None:
    """Run what is not done yet."""
    for stage in stages:
        if not Path(f"{stage}.done").exists():
            subprocess.run([sys.executable, "-m", "hpgr.cli", stage], check=True)
            Path(f"{stage}.done").touch()


def write_params(settings: dict[str, Any]) -> None:
    """This run's params.yaml: the project's, profile quick, with `settings` on top."""
    shutil.copy(ROOT / "params.yaml", ".")
    set_params(settings, "quick", profiles=ROOT / "profiles")


def batches_per_epoch() -> int:
    """Optimizer steps in which stage 2 sees every training event once."""
    cfg = load_config()
    windows = TrainingWindows(
        EventLog.open(Path("artifacts/sessions/arrays")),
        max_history=cfg.model.max_history,
        batch_tokens=cfg.finetune.batch_tokens,
        num_candidates=0,
        random_windows=True,
        seed=0,
    )
    return windows.batches_per_epoch


if __name__ == "__main__":
    main()
