"""Runs in MLflow: one parent run for the pipeline, one nested run for each stage.

The parent's tags identify the origin: git commit, data, workspace state, environment. A stage's run
holds its section of the parameters, its metrics and curves, its use of CPU and memory, the DVC
hashes of its inputs and outputs, and its report. The tag of a missing source has the value
`absent`, so that a missing tag has no meaning of its own.

Runs are written from the artifacts, after the stages have ended: a stage that DVC skipped or
restored is logged like one that ran. Reads git, `requirements.lock` and the workspace. Writes
MLflow's store.
"""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hpgr.config import Config
from hpgr.masking import masked
from hpgr.registry.summary import headline
from hpgr.registry.tracking import failing_run
from hpgr.registry.worktree import head
from hpgr.runtime import read_json, sha256_file
from hpgr.workspace import HERE, STAGES, Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunInfo

ABSENT = "absent"
ENVIRONMENT = Path("requirements.lock")  # the project's, for every workspace
SYSTEM_METRICS = {  # MLflow shows names below system/ on a page of their own
    "cpu_percent": "system/cpu_utilization_percentage",
    "memory_mb": "system/system_memory_usage_megabytes",
    "gpu_memory_mb": "system/gpu_0_memory_usage_megabytes",
}


def log_pipeline(
    client: MlflowClient, cfg: Config, experiment: str, workspace: Workspace = HERE
) -> str:
    """Log the parent run and its stages from the artifacts and return the parent's run id.

    The parent stays open: the caller adds the model and ends it. A failure here ends both runs as
    failed.
    """
    tags = run_tags(workspace)
    kind = "train" if tags["base.version"] == ABSENT else "refresh"
    parent = client.create_run(experiment, run_name=f"{kind}-{cfg.data.path.name}", tags=tags)
    run_id: str = parent.info.run_id
    with failing_run(client, run_id):
        metrics = _metrics(headline(workspace), int(time.time() * 1000))
        client.log_batch(run_id, metrics, _params(cfg, "data"))
        _log_files(client, run_id, workspace.evaluation, "report.html", "figures")
        for stage in STAGES:
            _log_stage(client, cfg, stage, parent.info, workspace)
    return run_id


def _log_stage(
    client: MlflowClient, cfg: Config, stage: str, parent: RunInfo, workspace: Workspace
) -> None:
    output = workspace.output(stage)
    resources = list(_rows(output / "resources.csv"))
    began = int(resources[0]["time"] * 1000) if resources else None
    ended = int(resources[-1]["time"] * 1000) if resources else int(time.time() * 1000)
    tags = {"mlflow.parentRunId": parent.run_id, **stage_tags(stage, workspace)}
    run = client.create_run(parent.experiment_id, start_time=began, run_name=stage, tags=tags)
    run_id = run.info.run_id
    with failing_run(client, run_id):
        metrics = _series(output / "curves.csv", resources, ended)
        if (output / "metrics.json").is_file():
            metrics += _metrics(read_json(output / "metrics.json"), ended)
        if (output / "mechanism.json").is_file():
            metrics += _metrics({"anchors": read_json(output / "mechanism.json")}, ended)
        sections = (stage, "model") if "model" in STAGES[stage].params else (stage,)
        client.log_batch(run_id, metrics, _params(cfg, *sections))
        _log_files(client, run_id, output, "*.json", "report.html", "figures")
        client.set_terminated(run_id, end_time=ended)


def _log_files(client: MlflowClient, run_id: str, folder: Path, *patterns: str) -> None:
    for path in (path for pattern in patterns for path in sorted(folder.glob(pattern))):
        log = client.log_artifacts if path.is_dir() else client.log_artifact
        log(run_id, str(path), path.name if path.is_dir() else None)


def pins(workspace: Workspace = HERE) -> tuple[Path, ...]:
    """Return the files that are kept whole with a version's run."""
    return workspace.params, workspace.data_pin, workspace.dvc_lock


def run_tags(workspace: Workspace = HERE) -> dict[str, str]:
    """Return the parent run's tags: git commit and state, data, workspace state, environment.

    `git.dirty` ignores the files that are kept with the run. `dvc.changed` lists the stages whose
    recorded inputs or outputs differ from the workspace, as after a training by hand without DVC.
    `base.version` is the version that training started from.
    """
    root, apart = workspace.root, [f":!{path.name}" for path in pins(workspace)]
    changes = _output(root, "git", "status", "--porcelain", "--", ".", *apart)
    status = _output(root, sys.executable, "-m", "dvc", "status", "--json")
    stages = ", ".join(sorted(json.loads(status or "{}"))) or "none"
    (data, *_) = _yaml(workspace.data_pin).get("outs") or [{}]
    config = workspace.finetuned / "config.json"
    base = read_json(config).get("base") if config.is_file() else None
    return {
        "git.commit": head(root) or ABSENT,
        "git.dirty": ABSENT if changes is None else str(bool(changes)).lower(),
        "dvc.data": _digest(data),
        "dvc.changed": ABSENT if status is None else stages,
        "environment.lock": sha256_file(ENVIRONMENT) if ENVIRONMENT.is_file() else ABSENT,
        "base.version": str(base["version"]) if base else ABSENT,
    }


def stage_tags(stage: str, workspace: Workspace = HERE) -> dict[str, str]:
    """Return a stage's tags: the DVC hash of every input and output that dvc.lock records."""
    recorded = (_yaml(workspace.dvc_lock).get("stages") or {}).get(stage)
    if recorded is None:
        return {"dvc.lock": ABSENT}
    return {
        masked(f"dvc.{kind}.{entry['path']}"): _digest(entry)
        for kind in ("deps", "outs")
        for entry in recorded.get(kind) or []
    }


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into one, keys joined by dots; lists stay as they are."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def metric_name(name: str) -> str:
    """Return a name that MLflow accepts: hr@10 becomes hr_at_10, other signs an underscore."""
    name = name.replace("@", "_at_")
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _params(cfg: Config, *sections: str) -> list[Param]:
    from mlflow.entities import Param

    values = cfg.model_dump(mode="json", by_alias=True)
    flat = flatten({name: values[name] for name in sections})
    return [Param(key, masked(value)) for key, value in flat.items()]


def _metrics(values: Any, timestamp: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [
        Metric(metric_name(name), float(value), timestamp, 0)
        for name, value in flatten(values).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _series(curves: Path, resources: list[dict[str, float]], ended: int) -> list[Metric]:
    """Return the columns of curves.csv by `step`, or else row, and the use of resources."""
    from mlflow.entities import Metric

    trained = [
        Metric(metric_name(name), value, ended, int(row.get("step", number)))
        for number, row in enumerate(_rows(curves))
        for name, value in row.items()
        if name != "step"
    ]
    return trained + [
        Metric(name, sample[column], int(sample["time"] * 1000), number)
        for number, sample in enumerate(resources)
        for column, name in SYSTEM_METRICS.items()
    ]


def _rows(source: Path) -> Iterator[dict[str, float]]:
    """Yield the rows of a CSV file without cells that are empty, text or not finite."""
    if not source.is_file():
        return
    with source.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            numbers: dict[str, float] = {}
            for name, cell in row.items():
                with suppress(TypeError, ValueError):
                    if math.isfinite(number := float(cell)):
                        numbers[name] = number
            yield numbers


def _digest(entry: dict[str, Any]) -> str:
    """Return the hash of an entry of data.dvc or dvc.lock, which says if it is not an md5."""
    return str(entry.get(entry.get("hash", "md5"), ABSENT))


def _yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.is_file() else {}


def _output(root: Path, *command: str) -> str | None:
    """Return what a command prints in `root`, stripped; None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
