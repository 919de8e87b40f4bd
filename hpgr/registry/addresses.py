"""Addresses of MLflow's store and registry, checked before MLflow uses them.

If an address does not answer, MLflow retries for minutes and ends in a traceback that does not say
where the address comes from. Reads the environment and the network. Writes nothing.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import httpx

from hpgr.folder import sqlite_file, sqlite_uri
from hpgr.masking import masked
from hpgr.runtime import UserError
from hpgr.workspace import HERE, Workspace

PATIENCE_S = 10.0  # for the first answer of a server
VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
FILES = ("", "file")
DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}  # default ports
EXPECTED = "http://HOST:PORT, sqlite:///PATH or a database server"


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


def public(uri: str) -> str:
    """Return `uri` as others may see and use it: absolute, and without credentials."""
    file = sqlite_file(uri)
    return masked(sqlite_uri(file) if file else uri)


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


def no_answer(place: str, why: object, *variables: str) -> str:
    """Return the message for a store or registry that does not answer.

    Args:
        place: the address or addresses, without secrets.
        why: the error in short.
        variables: names of environment variables that the address may come from.
    """
    message = f"MLflow at {place} does not answer ({why})"
    if not variables:
        return f"{message}: name another store with {VARIABLES[0]}"
    return (
        f"{message}. The address comes from the environment variable {' or '.join(variables)}: "
        "start the server, or name another one"
    )
