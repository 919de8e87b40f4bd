"""Runs in MLflow: one parent run for the pipeline, one nested run for each stage.

A stage's run holds its section of the parameters, its metrics and curves, what it cost, the DVC
hashes of its inputs and outputs, and its report. It is written after the stages have run, from
their artifacts: a stage that DVC skipped or restored is logged like one that ran.
Reads `artifacts/`. Writes the store that MLFLOW_TRACKING_URI names, or else `mlflow/store/`.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from hpgr.config import Config
from hpgr.folder import sqlite_file, sqlite_uri
from hpgr.masking import masked
from hpgr.registry.addresses import check_address, named_addresses
from hpgr.registry.lineage import ABSENT, run_tags, stage_tags
from hpgr.registry.mlflow_faults import answered
from hpgr.registry.summary import headline
from hpgr.runtime import UserError, atomic_path, read_json, sole_writer
from hpgr.workspace import HERE, STAGES, Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunInfo

CLASSIC = "?workflowType=machine_learning"  # MLflow shows its pages for language models otherwise
EXPERIMENTS = f"#/experiments{CLASSIC}"
PATIENCE_S = 10  # for the first answer of a server
NO_DATABASE = ("http:", "https:", "file:", "databricks", "uc:")
BATCH = 1000  # metrics that one request to MLflow may carry
SYSTEM_METRICS = {  # MLflow shows names below system/ on a page of their own
    "cpu_percent": "system/cpu_utilization_percentage",
    "memory_mb": "system/system_memory_usage_megabytes",
    "gpu_memory_mb": "system/gpu_0_memory_usage_megabytes",
}


def database(workspace: Workspace = HERE) -> Path:
    """SQLite file of the project's own store."""
    return workspace.store / "mlflow.db"


def own_uri(workspace: Workspace = HERE) -> str:
    """Address of the project's own SQLite store."""
    return sqlite_uri(database(workspace))


def make_store(workspace: Workspace = HERE) -> None:
    """Make the project's own store where there is none, whole or not at all.

    MLflow makes its tables one after the other and without a lock: two processes at once, or one
    that is killed, would leave a store that MLflow never opens again.
    """
    file = database(workspace)
    if file.is_file():
        return
    with sole_writer(file):
        if file.is_file():  # another process was faster
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        escape_mlflow()
        with atomic_path(file) as temporary:
            made = SqlAlchemyStore(sqlite_uri(temporary), artifacts_uri(workspace))
            made.engine.dispose()


def escape_mlflow() -> None:
    """Have MLflow double each % of its own folder, which is below ours, where alembic reads it.

    MLflow does so with the database's address, but not with the folder of its migrations.
    """
    from mlflow.store.db import utils

    package = str(Path(utils.__file__).parents[2])
    if "%" in package:
        utils._get_package_dir = lambda: package.replace("%", "%%")


def artifacts_uri(workspace: Workspace = HERE) -> str:
    """Where the own store keeps its artifacts: beside it."""
    return (workspace.store / "artifacts").resolve().as_uri()


def tracking_uri(workspace: Workspace = HERE) -> str:
    """MLFLOW_TRACKING_URI if set, else the own store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or own_uri(workspace)


def registry_uri(workspace: Workspace = HERE) -> str:
    """Where versions are registered: MLFLOW_REGISTRY_URI if set, else with the runs."""
    return os.environ.get("MLFLOW_REGISTRY_URI") or tracking_uri(workspace)


def connect(workspace: Workspace = HERE) -> MlflowClient:
    """MLflow's client on `tracking_uri`, which becomes the process's store.

    Raises:
        UserError: the store or the registry does not answer as one; found out with one question
            each, since MLflow itself would go on asking for minutes.
    """
    for variable, uri in named_addresses().items():
        check_address(variable, uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar a small file
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # with its credentials
    with answered():
        import mlflow

        # What fails is told once, as the error; these would tell each attempt with its stack.
        for name in ("mlflow.store.db.utils", "mlflow.exceptions", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        escape_mlflow()
        tracking, registry = tracking_uri(workspace), registry_uri(workspace)
        with _environment_kept("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(tracking)
        if tracking == own_uri(workspace):
            make_store(workspace)
        for uri in {tracking, registry}:
            _try_database(uri)
        client = mlflow.MlflowClient()
        with _asking_once():
            client.search_experiments(max_results=1)
            if registry != tracking:
                client.search_registered_models(max_results=1)
    return client


@contextmanager
def _environment_kept(name: str) -> Iterator[None]:
    """Undo what the block does to a variable.

    MLflow puts its address into the environment, where the next `connect`, of another workspace
    perhaps, would take it for a person's.
    """
    before = os.environ.get(name)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def _try_database(uri: str) -> None:
    """Connect to a database once; nothing happens for another store, or a file not made yet."""
    file = sqlite_file(uri)
    if "://" not in uri or uri.startswith(NO_DATABASE) or (file and not file.is_file()):
        return
    import sqlalchemy

    limited = {"connect_args": {"connect_timeout": PATIENCE_S}} if file is None else {}
    engine = sqlalchemy.create_engine(uri, **limited)
    try:
        with engine.connect() as connection:
            sqlalchemy.inspect(connection).get_table_names()
    finally:
        engine.dispose()


@contextmanager
def _asking_once() -> Iterator[None]:
    """Requests to MLflow are tried again once, within seconds, unless the environment says else."""
    limits = {"MAX_RETRIES": 1, "TIMEOUT": PATIENCE_S}
    named = {f"MLFLOW_HTTP_REQUEST_{name}": str(value) for name, value in limits.items()}
    added = {name: value for name, value in named.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def public_uri(workspace: Workspace = HERE) -> str:
    """`tracking_uri` for other folders and other eyes: absolute, and without credentials."""
    return _public(tracking_uri(workspace))


def public_registry(workspace: Workspace = HERE) -> str:
    """The same of `registry_uri`."""
    return _public(registry_uri(workspace))


def _public(uri: str) -> str:
    file = sqlite_file(uri)
    return masked(sqlite_uri(file) if file else uri)


@contextmanager
def existing_store(workspace: Workspace = HERE) -> Iterator[MlflowClient]:
    """MLflow's client for questions alone.

    Raises:
        UserError: there is no such store, which asking would make, or it does not answer.
    """
    file = sqlite_file(tracking_uri(workspace))
    if file is not None and not file.is_file():
        raise UserError(
            f"nothing is registered at {public_uri(workspace)}: there is no such store. Where "
            "versions are registered elsewhere, name it: export MLFLOW_TRACKING_URI=..."
        )
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a person waits
    with answered():
        yield connect(workspace)


@contextmanager
def failing_run(client: MlflowClient, run_id: str) -> Iterator[None]:
    """Have the run end as FAILED where the block does not succeed, so that none stays RUNNING.

    On a full disk the run's own files, of no use any more, make the room that takes.
    """
    try:
        yield
    except BaseException:
        try:
            client.set_terminated(run_id, status="FAILED")
        except Exception:
            with suppress(Exception):  # the store does not answer: the first failure is told
                _drop_files(client, run_id)
                client.set_terminated(run_id, status="FAILED")
        raise


def _drop_files(client: MlflowClient, run_id: str) -> None:
    """Remove the files of a run, and of the model it logged, that lie beside an SQLite store."""
    own_store = sqlite_file(client.tracking_uri)
    info = client.get_run(run_id).info
    models = client.search_logged_models([info.experiment_id])
    own = [model.artifact_location for model in models if model.source_run_id == run_id]
    for place in (info.artifact_uri, *own):
        folder = Path(unquote(place.removeprefix("file://")))
        if own_store and folder.is_relative_to(own_store.parent):
            shutil.rmtree(folder, ignore_errors=True)


def experiment_id(client: MlflowClient, name: str, workspace: Workspace = HERE) -> str:
    """Id of the experiment, made if need be; the own store keeps its artifacts beside it."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    own = tracking_uri(workspace) == own_uri(workspace)
    location = artifacts_uri(workspace) if own else None
    return client.create_experiment(name, artifact_location=location)


def log_pipeline(
    client: MlflowClient, cfg: Config, experiment: str, workspace: Workspace = HERE
) -> str:
    """Log the parent run and its stages from the artifacts; returns the parent's run id.

    The parent is left running: the caller adds the model to it and ends it. What fails here ends
    both runs as failed.
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
    """Nested mappings as one, keys joined by dots; other values, lists among them, stay."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def metric_name(name: str) -> str:
    """A name that MLflow accepts: hr@10 becomes hr_at_10, any other sign an underscore."""
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
    """Every numeric column of curves.csv against its `step` column, or its row number."""
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
    """Rows of a CSV file, numbers only: a cell that is empty, text or NaN is left out."""
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


def mlflow_address() -> str:
    """Where MLflow's pages are: the tracking server, or that of `make up` over the own store."""
    parts = urlsplit(tracking_uri())
    if parts.scheme not in ("http", "https"):
        return f"http://127.0.0.1:{os.environ.get('HPGR_MLFLOW_PORT', '5000')}"
    place = parts.netloc.rpartition("@")[2]  # a page shows no password
    return f"{parts.scheme}://{place}{parts.path}".rstrip("/")
