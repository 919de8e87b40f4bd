"""Addresses that the environment gives for MLflow, looked at before MLflow does.

MLflow tries an address that does not answer again for minutes, and ends in a traceback that does
not say where it had the address from. Reads the network; writes nothing.
"""

from __future__ import annotations

import os
import socket
from urllib.parse import SplitResult, urlsplit

import httpx

from hpgr.runtime import UserError

PATIENCE_S = 10.0
VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
FILES = ("", "file")
DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}  # default ports
EXPECTED = "http://HOST:PORT, sqlite:///PATH or a database server"


def named_addresses() -> dict[str, str]:
    """What the environment names, by variable.

    Raises:
        UserError: one of them is none; see `split_address`.
    """
    named = {name: uri for name in VARIABLES if (uri := os.environ.get(name))}
    for name, uri in named.items():
        split_address(name, uri)
    return named


def split_address(variable: str, uri: str) -> SplitResult:
    """The parts of what the environment's `variable` says, without asking the network.

    Raises:
        UserError: it is no address, or MLflow keeps no versions at one of its kind.
    """
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        raise UserError(f"{variable} is no address ({error}), expected {EXPECTED}") from error
    if parts.scheme in FILES:
        raise UserError(
            f"{variable} is {uri!r}: MLflow keeps no versions in plain files, expected {EXPECTED}. "
            f"Without it (`unset {variable}`) the project's own store is used"
        )
    if parts.scheme.partition("+")[0] not in ("http", "https", "sqlite", *DATABASES):
        raise UserError(f"{variable} begins with {parts.scheme!r}, expected {EXPECTED}")
    return parts


def check_address(variable: str, uri: str) -> None:
    """Refuse what the environment's `variable` says if it is no store for versions, or is dead.

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
            return  # it answers; whom MLflow trusts is set elsewhere
        user = "***@" if parts.username else ""
        place = f"{parts.scheme}://{user}{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
        raise UserError(
            f"MLflow at {place} does not answer ({error}). The address comes from the environment "
            f"variable {variable}: start the server, or name another one"
        ) from error
    except httpx.InvalidURL as error:
        raise UserError(f"{variable} is no address ({error}), expected {EXPECTED}") from error
