"""Describe failures of MLflow's store or server in one line: cause and fix.

MLflow reports a wrong address, a missing driver, a locked or foreign database or a server that is
down in many ways, each with a long traceback. Reads MLflow's settings for the addresses. Writes
nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from traceback import walk_tb

from hpgr import failure
from hpgr.folder import sqlite_file, sqlite_uri
from hpgr.masking import masked
from hpgr.params_file import ConfigError
from hpgr.runtime import UserError
from hpgr.terminal import short
from hpgr.workspace import HERE

VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
SHOWN = 300  # characters of a library's own message
LIBRARIES = (
    "mlflow", "sqlalchemy", "alembic", "sqlite3", "psycopg2", "psycopg", "pymysql", "MySQLdb",
    "pyodbc", "pymssql", "requests", "urllib3", "http", "botocore", "boto3", "s3transfer", "google",
    "azure",
)  # fmt: skip
DRIVERS = {"psycopg2": "psycopg2-binary", "psycopg": "psycopg[binary]", "MySQLdb": "mysqlclient"}
INSTEAD = "or name another store with MLFLOW_TRACKING_URI"
# Patterns in the libraries' messages, and what follows "MLflow at ADDRESS"; the first match counts.
CAUSES = {
    r"database (?:table )?is locked": (
        ": the database is locked by another process; wait until it has ended, then run the same "
        "command again"
    ),
    r"file is not a database|file is encrypted|database disk image is malformed": (
        f" is not an SQLite database, or is damaged: restore it from a backup, {INSTEAD}"
    ),
    r"readonly database|read-only transaction|permission denied for": (
        f" is read-only: give this user the right to write it, {INSTEAD}"
    ),
    r"unable to open database file": (
        " cannot be opened: give this user the right to read and write the file and its folder, "
        f"{INSTEAD}"
    ),
    r"out-of-date database schema|Can't locate revision": (
        " has tables of another version of MLflow: after a backup, `mlflow db upgrade ADDRESS` "
        f"brings old ones up to date; for newer ones install the MLflow that made them, {INSTEAD}"
    ),
    r"UnsupportedModelRegistryStore|unsupported URI|Can't load plugin: sqlalchemy|Could not parse "
    r"SQLAlchemy URL|Invalid ?url|Failed to parse|No connection adapters|Invalid database URI"
    r"|InvalidSchema|MissingSchema|LocationParseError|Invalid URI|invalid literal for int"
    r"|Port could not be cast|filesystem tracking backend": (
        " is not the address of a store: expected http://HOST:PORT, sqlite:////ABSOLUTE/FILE.db or "
        "postgresql://HOST/DATABASE in MLFLOW_TRACKING_URI"
    ),
    r"error code 401|\b401\b.*Unauthorized|UNAUTHENTICATED|CUSTOMER_UNAUTHORIZED"
    r"|password authentication failed|Access denied for user|no password supplied": (
        " does not accept the credentials: set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; a database has them in its address"
    ),
    r"error code 403|PERMISSION_DENIED": (
        f" does not allow this: ask whoever runs it for the right, {INSTEAD}"
    ),
    r"error code 404|ENDPOINT_NOT_FOUND|not in a valid JSON format|Expecting value"
    r"|JSONDecodeError": (
        " answers but is not an MLflow server: correct the address in MLFLOW_TRACKING_URI"
    ),
    r"error code (?:429|5\d\d)|too many (?:429|5\d\d)": (
        " has an internal error: read the server's log, then run the same command again"
    ),
}
NO_ANSWER = re.compile(
    r"timed? ?out|Connection (?:refused|reset|aborted)|Max retries exceeded|could not connect"
    r"|could not translate host name|Name or service not known|name resolution|No route to host"
    r"|Network is unreachable|server closed the connection|Can't connect to|Connection to .* failed"
    r"|Remote end closed|connection failed|Connection broken|IncompleteRead|API request to",
    re.IGNORECASE,
)


@contextmanager
def answered() -> Iterator[None]:
    """Turn a failure of MLflow's store or server that ends the block into one message.

    Raises:
        UserError: the message; its cause is the failure.
    """
    try:
        yield
    except (UserError, ConfigError):
        raise
    except Exception as error:
        if message := describe(error):
            raise UserError(message) from error
        raise


def describe(error: Exception) -> str | None:
    """Return cause and fix of `error` in one line; None if MLflow is not involved."""
    errors = list(failure.chain(error))
    if any(failure.is_full(one) for one in errors):
        import mlflow

        return failure.describe(error, sqlite_file(mlflow.get_tracking_uri()) or HERE.store)
    if not any(_is_stores(one) for one in errors):
        return None
    for one in errors:
        if isinstance(one, ModuleNotFoundError) and one.name:
            return _no_driver(one.name)
    said = [f"{type(one).__name__}: {one}" for one in errors]
    for pattern, meaning in CAUSES.items():
        if any(re.search(pattern, text, re.IGNORECASE) for text in said):
            return f"MLflow at {where()}{meaning} ({reason(error)})"
    if any(NO_ANSWER.search(text) for text in said):
        return no_answer(
            where(), reason(error), *(name for name in VARIABLES if name in os.environ)
        )
    return f"MLflow at {where()} failed: {reason(error)}"


def no_answer(place: str, why: object, *variables: str) -> str:
    """Return the message for a store or registry at `place` that does not answer.

    `variables` are those of the environment that its address may come from.
    """
    message = f"MLflow at {place} does not answer ({why})"
    if not variables:
        return f"{message}: name another store with {VARIABLES[0]}"
    return (
        f"{message}. The address comes from the environment variable {' or '.join(variables)}: "
        "start the server, or name another one"
    )


def _no_driver(module: str) -> str:
    package = DRIVERS.get(module, module)
    instead = INSTEAD
    if module == "psycopg" and find_spec("psycopg2"):
        instead = "or name the driver that is: postgresql+psycopg2://..."
    return (
        f"MLflow's store at {where()} needs the Python package {package}, which is not installed: "
        f"python -m pip install '{package}', {instead}"
    )


def reason(error: BaseException) -> str:
    """Return a library's message in one line, short enough to read."""
    text = str(error) or repr(error)
    # SQLAlchemy appends its statement and a link; urllib3 repeats the message.
    text = re.split(r"\n\[SQL:|\n\(Background on|\. Response body:", text)[0]
    if (inner := re.findall(r"\(Caused by (.*)\)$", text.strip(), re.DOTALL)) and inner[0]:
        text = inner[0]
    text = " ".join(text.split())
    return short(text, SHOWN)


def public(uri: str) -> str:
    """Return `uri` as others may see and use it: absolute, and without credentials."""
    file = sqlite_file(uri)
    return masked(sqlite_uri(file) if file else uri)


def where() -> str:
    """Return the addresses that MLflow uses, without secrets."""
    import mlflow

    tracking, registry = public(mlflow.get_tracking_uri()), public(mlflow.get_registry_uri())
    return tracking if tracking == registry else f"{tracking}, registry {registry}"


def _is_stores(error: BaseException) -> bool:
    """Return True if MLflow or a library that it uses raised the error or is in its traceback."""
    names = [type(error).__module__]
    if isinstance(error, ImportError | OSError | ValueError):
        frames = [frame for frame, _ in walk_tb(error.__traceback__)]
        names += [str(frame.f_globals.get("__name__", "")) for frame in frames]
    return any(name.partition(".")[0] in LIBRARIES for name in names)
