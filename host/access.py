"""Prefect's authentication string: made once, kept 0600 beside Prefect's database.

Whoever has it can run commands on this machine, as Prefect's deployments name code. It stays in
the environment and in its file: on no command line, in no log. Reads and writes
PREFECT_HOME/api-auth-string.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_SERVER_API_AUTH_STRING,
    PREFECT_SERVER_CORS_ALLOWED_ORIGINS,
)

from hpgr.runtime import UserError

FILE = "api-auth-string"


def new_string() -> str:
    """Make up a string that cannot be guessed: `user:password`, as Prefect and proxies expect."""
    return f"hpgr:{secrets.token_urlsafe(32)}"


def for_server(string: str, origin: str) -> dict[Any, str]:
    """Prefect's settings for a server that takes only this string, and for its clients.

    Args:
        string: see `new_string`.
        origin: the only one whose pages may read the server's answers; empty for none.
    """
    return {
        PREFECT_API_AUTH_STRING: string,
        PREFECT_SERVER_API_AUTH_STRING: string,
        PREFECT_SERVER_CORS_ALLOWED_ORIGINS: origin,
    }


def string_file(home: Path) -> Path:
    """The file in Prefect's folder that holds the string; it is made if it is missing.

    Raises:
        UserError: others may read the file, or it is empty.
    """
    path = home / FILE
    home.mkdir(parents=True, exist_ok=True)
    temporary = home / f".{FILE}.{os.getpid()}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(new_string())
        with suppress(FileExistsError):  # made before, or by another process at this moment
            os.link(temporary, path)
    finally:
        temporary.unlink()
    if path.stat().st_mode & 0o077:
        raise UserError(f"{path} may be read by others: `chmod 600 {path}`, or delete it for a new")
    if not path.read_text().strip():
        raise UserError(f"{path} is empty, expected Prefect's authentication string: delete it")
    return path


def read_string(home: Path) -> str:
    """Read the string; raises as `string_file`."""
    return string_file(home).read_text().strip()
