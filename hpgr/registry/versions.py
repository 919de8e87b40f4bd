"""Versions of the model in the registry: their aliases and bundles.

Reads the store that MLFLOW_TRACKING_URI names, or else `mlflow/store/`. Writes only below the
folders it is given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hpgr.registry.mlflow_faults import public, reason
from hpgr.registry.tracking import registry_uri
from hpgr.runtime import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
BUNDLE = "artifacts/bundle"  # pyfunc's folder for it inside a version
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # no such model; no such alias


def aliases(client: MlflowClient, name: str) -> dict[str, int]:
    """Return alias -> version; empty if nothing is registered."""
    from mlflow.exceptions import MlflowException

    try:
        return {a: int(v) for a, v in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}


def alias_of(client: MlflowClient, name: str, version: int) -> str | None:
    """Return the version's most important alias, or None."""
    called = aliases(client, name)
    return next((a for a in (CHAMPION, PREVIOUS, CHALLENGER) if called.get(a) == version), None)


def get_version(client: MlflowClient, name: str, version: int) -> ModelVersion:
    """Return one version.

    Raises:
        UserError: the registry has no such version.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        found = sorted(int(v.version) for v in client.search_model_versions(f"name='{name}'"))
        there = (
            f"it has {', '.join(map(str, found))}"
            if found
            else "it is empty: run `make run`, or name another with MLFLOW_TRACKING_URI"
        )
        raise UserError(
            f"the registry has no version {version} of {name}; {there} ({public(registry_uri())})"
        ) from None


def find_champion(client: MlflowClient, name: str) -> ModelVersion:
    """Return the version that the alias champion names.

    Raises:
        UserError: there is none, or the registry cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ABSENT:
            raise UserError(
                f"the registry has no {name}@{CHAMPION} ({error.message}): `make run`, the flow "
                "`train` or `hpgr register` makes one; `hpgr recommend --source artifacts` uses "
                "the last run's model"
            ) from error
        raise UserError(f"the registry cannot be reached: {reason(error)}") from error


def fetch_bundle(name: str, version: int, folder: Path) -> Path:
    """Download the version's bundle (`hpgr.registry.bundle`) below `folder` and return its path.

    Raises:
        UserError: it cannot be fetched.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(download_artifacts(f"models:/{name}/{version}/{BUNDLE}", dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise UserError(
            f"{name} version {version} cannot be fetched from the registry: {reason(error)}"
        ) from error


@contextmanager
def bundle_of(name: str, version: int) -> Iterator[Path]:
    """Yield the version's bundle in a folder that lasts as long as the block."""
    with tempfile.TemporaryDirectory() as scratch:
        yield fetch_bundle(name, version, Path(scratch))
