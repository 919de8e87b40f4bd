"""A project with a benchmark of its own: a small generated log and settings of seconds."""

import csv
import shutil
import subprocess
from pathlib import Path

import yaml
from own_run import walks

ROOT = Path(__file__).parents[1]
TINY = {  # on top of every model's profile
    "data": {"format": "table", "interactions": "log.csv", "columns": {"action": "action"}},
    "model": {"dim": 8, "num_blocks": 1, "num_heads": 1},
    "sessionize": {"min_label_events": 1},
    "pretrain": {"steps": 3, "batch_tokens": 128},
    "finetune": {
        **{"steps": 60, "batch_tokens": 128, "validate_steps": 20, "patience": 1000},
        **{"checkpoint_steps": 5, "num_candidates": 4},
    },
    "evaluate": {"bootstrap_samples": 60, "tuning_queries": 20, "report_users": 1},
}
TINY["data"]["columns"] |= {"title": None, "categories": None}
CELLS = {"dataset": ["tiny"], "split": ["leave-one-out"], "model": ["hpgr", "hstu"], "seed": [0, 1]}


def make_project(folder: Path) -> None:
    """Fill an empty folder; the code that runs is this repository's."""
    for name in ("params.yaml", "dvc.yaml", "profiles", "benchmarks/dvc.yaml", "benchmarks/.dvc"):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("tmp", "cache"))
        elif source.exists():
            shutil.copyfile(source, target)
    for script in (ROOT / "benchmarks").glob("*.py"):
        shutil.copyfile(script, folder / "benchmarks" / script.name)
    write_matrix(folder, CELLS)
    log = folder / "data/tiny/log.csv"
    log.parent.mkdir(parents=True)
    with log.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["user_id", "item_id", "timestamp", "action"])
        for u, (user, events) in enumerate(walks(repeats=False).items()):
            for n, (item, action) in enumerate(events):
                writer.writerow([user, item, 1_600_000_000 + 10**5 * u + 600 * n, action])
    (folder / ".gitignore").write_text("/benchmarks/cells/\n/data/\n__pycache__\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "Project"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)


def write_matrix(folder: Path, cells: dict, datasets: dict | None = None) -> None:
    """benchmarks/params.yaml with the project's own models."""
    own = yaml.safe_load((ROOT / "benchmarks/params.yaml").read_text())
    matrix = {"cells": cells, "datasets": datasets or {"tiny": TINY}, "models": own["models"]}
    (folder / "benchmarks/params.yaml").write_text(yaml.safe_dump(matrix))
