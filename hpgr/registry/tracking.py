"""MLflow's store: its address, and the client on it.

The store is that of MLFLOW_TRACKING_URI, or else the workspace's, which is made if missing. Each
address is checked and each store tried once before use: MLflow itself would retry for minutes, and
end in a traceback that does not say where the address comes from.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

import httpx

from hpgr.folder import sqlite_file, sqlite_uri
from hpgr.registry.mlflow_faults import VARIABLES, answered, no_answer, public
from hpgr.runtime import UserError, atomic_path, sole_writer
from hpgr.workspace import HERE, Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

CLASSIC = "?workflowType=machine_learning"  # without it MLflow opens its pages for language models
EXPERIMENTS = f"#/experiments{CLASSIC}"
PATIENCE_S = 10.0  # for the first answer of a server
FILES = ("", "file")
DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}  # default ports
EXPECTED = "http://HOST:PORT, sqlite:///PATH or a database server"
NO_DATABASE = ("http:", "https:", "file:", "databricks", "uc:")


def database(workspace: Workspace = HERE) -> Path:
    """SQLite file of the project's own store."""
    return workspace.store / "mlflow.db"


def own_uri(workspace: Workspace = HERE) -> str:
    """Address of the project's own SQLite store."""
    return sqlite_uri(database(workspace))


def tracking_uri(workspace: Workspace = HERE) -> str:
    """MLFLOW_TRACKING_URI if set, else the own store."""
    return os.environ.get(VARIABLES[0]) or own_uri(workspace)


def registry_uri(workspace: Workspace = HERE) -> str:
    """MLFLOW_REGISTRY_URI if set, else `tracking_uri`."""
    return os.environ.get(VARIABLES[1]) or tracking_uri(workspace)


def named_addresses() -> dict[str, str]:
    """Return the addresses that the environment names, by variable.

    Raises:
        UserError: one of them is not valid; see `split_address`.
    """
    named = {name: uri for name in VARIABLES if (uri := os.environ.get(name))}
    for name, uri in named.items():
        split_address(name, uri)
    return named


def split_address(variable: str, uri: str) -> SplitResult:
    """Split the address in the environment's `variable`, without asking the network.

    Raises:
        UserError: it is not an address, or MLflow keeps no versions at an address of this kind.
    """
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        raise UserError(f"{variable} is not an address ({error}), expected {EXPECTED}") from error
    if parts.scheme in FILES:
        raise UserError(
            f"{variable} is {uri!r}: MLflow keeps no versions in plain files, expected {EXPECTED}. "
            f"Without it (`unset {variable}`) the project's own store is used"
        )
    if parts.scheme.partition("+")[0] not in ("http", "https", "sqlite", *DATABASES):
        raise UserError(f"{variable} begins with {parts.scheme!r}, expected {EXPECTED}")
    return parts


def check_address(variable: str, uri: str) -> None:
    """Refuse the address in the environment's `variable` if it is not valid or nothing answers.

    Raises:
        UserError: as `split_address`, or nothing answers there; its cause is the network's error.
    """
    parts = split_address(variable, uri)
    kind, host = parts.scheme.partition("+")[0], parts.hostname
    port = parts.port or DATABASES.get(kind)
    try:
        if kind in ("http", "https"):
            httpx.get(uri, timeout=PATIENCE_S)
        elif host and port:
            socket.create_connection((host, port), PATIENCE_S).close()
    except (httpx.TransportError, OSError) as error:
        if "certificate" in str(error).lower():
            return  # it answers; trust in certificates is set elsewhere
        raise UserError(no_answer(public(uri), error, variable)) from error
    except httpx.InvalidURL as error:
        raise UserError(f"{variable} is not an address ({error}), expected {EXPECTED}") from error


def make_store(workspace: Workspace = HERE) -> None:
    """Make the project's own store if there is none, whole or not at all.

    MLflow makes its tables one by one and without a lock: two processes at once, or one that is
    killed, would leave a store that MLflow can never open again.
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
    """Make MLflow double each % in the path of its own package, as alembic expects.

    MLflow does so for the database's address, but not for the folder of its migrations.
    """
    from mlflow.store.db import utils

    package = str(Path(utils.__file__).parents[2])
    if "%" in package:
        utils._get_package_dir = lambda: package.replace("%", "%%")


def artifacts_uri(workspace: Workspace = HERE) -> str:
    """Return the folder of the own store's artifacts as a URI."""
    return (workspace.store / "artifacts").resolve().as_uri()


def connect(workspace: Workspace = HERE) -> MlflowClient:
    """Return MLflow's client on `tracking_uri`, which becomes the process's store.

    Raises:
        UserError: the store or the registry does not answer; one request to each finds out.
    """
    for variable, uri in named_addresses().items():
        check_address(variable, uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one per file
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it has credentials
    limits = {"MAX_RETRIES": 1, "TIMEOUT": int(PATIENCE_S)}
    named = {f"MLFLOW_HTTP_REQUEST_{name}": str(value) for name, value in limits.items()}
    with answered(), _environment_kept("MLFLOW_TRACKING_URI", *named):
        import mlflow

        # The error reports a failure once; these would log each attempt with a traceback.
        for name in ("mlflow.store.db.utils", "mlflow.exceptions", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        escape_mlflow()
        tracking, registry = tracking_uri(workspace), registry_uri(workspace)
        mlflow.set_tracking_uri(tracking)
        if tracking == own_uri(workspace):
            make_store(workspace)
        for uri in {tracking, registry}:
            _try_database(uri)
        client = mlflow.MlflowClient()
        for name, value in named.items():
            os.environ.setdefault(name, value)
        client.search_experiments(max_results=1)
        if registry != tracking:
            client.search_registered_models(max_results=1)
    return client


@contextmanager
def _environment_kept(*names: str) -> Iterator[None]:
    """Restore environment variables after the block.

    MLflow writes its address into the environment. The next `connect`, perhaps of another
    workspace, would take it for the user's.
    """
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _try_database(uri: str) -> None:
    """Connect once if `uri` is a database that exists; do nothing for other stores."""
    file = sqlite_file(uri)
    if "://" not in uri or uri.startswith(NO_DATABASE) or (file and not file.is_file()):
        return
    import sqlalchemy

    limited = {"connect_args": {"connect_timeout": int(PATIENCE_S)}} if file is None else {}
    engine = sqlalchemy.create_engine(uri, **limited)
    try:
        with engine.connect() as connection:
            sqlalchemy.inspect(connection).get_table_names()
    finally:
        engine.dispose()


def connect_for_reading(workspace: Workspace = HERE) -> MlflowClient:
    """Return MLflow's client on a store that exists already; `connect` would make it.

    Raises:
        UserError: there is no such store, or it does not answer.
    """
    file = sqlite_file(tracking_uri(workspace))
    if file is not None and not file.is_file():
        raise UserError(
            f"nothing is registered at {public(tracking_uri(workspace))}: there is no such store. "
            "If versions are registered elsewhere, name that store: export MLFLOW_TRACKING_URI=..."
        )
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # someone is waiting
    return connect(workspace)


@contextmanager
def failing_run(client: MlflowClient, run_id: str) -> Iterator[None]:
    """End the run as FAILED if the block fails, so that none stays RUNNING.

    On a full disk the run's own files, useless by then, are removed to make room.
    """
    try:
        yield
    except BaseException:
        try:
            client.set_terminated(run_id, status="FAILED")
        except Exception:
            with suppress(Exception):  # the first failure is the one to report
                _drop_files(client, run_id)
                client.set_terminated(run_id, status="FAILED")
        raise


def _drop_files(client: MlflowClient, run_id: str) -> None:
    """Remove the files of a run and of its model if they are beside an SQLite store."""
    own_store = sqlite_file(client.tracking_uri)
    info = client.get_run(run_id).info
    models = client.search_logged_models([info.experiment_id])
    own = [model.artifact_location for model in models if model.source_run_id == run_id]
    for place in (info.artifact_uri, *own):
        folder = Path(unquote(place.removeprefix("file://")))
        if own_store and folder.is_relative_to(own_store.parent):
            shutil.rmtree(folder, ignore_errors=True)


def experiment_id(client: MlflowClient, name: str, workspace: Workspace = HERE) -> str:
    """Return the experiment's id; make the experiment if there is none."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    own = tracking_uri(workspace) == own_uri(workspace)
    location = artifacts_uri(workspace) if own else None
    return client.create_experiment(name, artifact_location=location)


def mlflow_address() -> str:
    """Return the address of MLflow's pages: the tracking server, or the one of `make up`."""
    parts = urlsplit(tracking_uri())
    if parts.scheme not in ("http", "https"):
        return f"http://127.0.0.1:{os.environ.get('HPGR_MLFLOW_PORT', '5000')}"
    place = parts.netloc.rpartition("@")[2]  # a page shows no password
    return f"{parts.scheme}://{place}{parts.path}".rstrip("/")
