"""Runs in MLflow: one parent run for the pipeline, one nested run for each stage.

A stage's run holds its section of the parameters, its metrics and curves, its use of CPU and
memory, the DVC hashes of its inputs and outputs, and its report. Runs are written from the
artifacts, after the stages have ended: a stage that DVC skipped or restored is logged like one that
ran. Reads the workspace's artifacts. Writes MLflow's store.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpgr.config import Config
from hpgr.masking import masked
from hpgr.registry.lineage import ABSENT, run_tags, stage_tags
from hpgr.registry.summary import headline
from hpgr.registry.tracking import failing_run
from hpgr.runtime import read_json
from hpgr.workspace import HERE, STAGES, Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunInfo

BATCH = 1000  # metrics that one request to MLflow may carry
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
        _log_params(client, run_id, {"data": _section(cfg, "data")})
        now = int(time.time() * 1000)
        _log_metrics(client, run_id, _metrics(headline(workspace), now))
        report = workspace.evaluation / "report.html"
        if report.is_file():
            client.log_artifact(run_id, str(report))
        figures = workspace.evaluation / "figures"
        if figures.is_dir():
            client.log_artifacts(run_id, str(figures), figures.name)
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
        params = {stage: _section(cfg, stage)}
        if "model" in STAGES[stage].params:
            params["model"] = _section(cfg, "model")
        _log_params(client, run_id, params)
        if (output / "metrics.json").is_file():
            _log_metrics(client, run_id, _metrics(read_json(output / "metrics.json"), ended))
        _log_metrics(client, run_id, _curves(output / "curves.csv", ended))
        _log_metrics(client, run_id, _system(resources))
        for pattern in ("*.json", "report.html", "figures"):
            for path in sorted(output.glob(pattern)):
                log = client.log_artifacts if path.is_dir() else client.log_artifact
                log(run_id, str(path), "figures" if path.is_dir() else None)
        client.set_terminated(run_id, end_time=ended)


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


def _section(cfg: Config, name: str) -> dict[str, Any]:
    return cfg.model_dump(mode="json", by_alias=True)[name]


def _log_params(client: MlflowClient, run_id: str, params: dict[str, Any]) -> None:
    from mlflow.entities import Param

    entries = [Param(key, masked(value)) for key, value in flatten(params).items()]
    client.log_batch(run_id, params=entries)


def _log_metrics(client: MlflowClient, run_id: str, metrics: Iterator[Metric]) -> None:
    while batch := list(islice(metrics, BATCH)):
        client.log_batch(run_id, metrics=batch)


def _metrics(values: Any, timestamp: int) -> Iterator[Metric]:
    from mlflow.entities import Metric

    for name, value in flatten(values).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield Metric(metric_name(name), float(value), timestamp, 0)


def _curves(source: Path, timestamp: int) -> Iterator[Metric]:
    """Yield every numeric column of curves.csv by its `step` column, or else its row number."""
    from mlflow.entities import Metric

    for number, row in enumerate(_rows(source)):
        step = int(row.pop("step", number))
        for name, value in row.items():
            yield Metric(metric_name(name), value, timestamp, step)


def _system(samples: list[dict[str, float]]) -> Iterator[Metric]:
    from mlflow.entities import Metric

    for number, sample in enumerate(samples):
        for column, name in SYSTEM_METRICS.items():
            yield Metric(name, sample[column], int(sample["time"] * 1000), number)


def _rows(source: Path) -> Iterator[dict[str, float]]:
    """Yield the rows of a CSV file without cells that are empty, text or not finite."""
    if not source.is_file():
        return
    with source.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            numbers: dict[str, float] = {}
            for name, cell in row.items():
                try:
                    number = float(cell)
                except (TypeError, ValueError):
                    continue
                if math.isfinite(number):
                    numbers[name] = number
            yield numbers
