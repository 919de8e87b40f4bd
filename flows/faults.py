"""Faults of a flow, and which of them are tried again: those that pass by themselves.

A lock that another process holds, a remote or a server that does not answer: the same task succeeds
a minute later. A wrong input, a failed stage, a stage that was killed for its memory: it fails
again, and a retry only hides the message. Reads and writes nothing.
"""

from __future__ import annotations

import re
from typing import Any

from hpgr.config import ConfigError, Orchestrate
from hpgr.masking import masked
from hpgr.runtime import UserError

# What the tools print when the cause lies outside the project and may be gone in a minute.
TRANSIENT = re.compile(
    "|".join(
        (
            r"Unable to acquire lock",  # dvc.lock: another dvc command runs
            r"is busy, it is being blocked by",  # dvc.rwlock: another run holds the stage's paths
            r"database is locked",  # SQLite, under MLflow's store and DVC's index
            r"Could not connect to the endpoint URL",  # botocore
            r"failed to connect to (s3|gs|azure|http|ssh)",  # dvc, to its remote
            r"Connection (refused|reset|aborted|timed out)",
            r"Connect call failed",
            r"All connection attempts failed",
            r"Network is unreachable",
            r"No route to host",
            r"Temporary failure in name resolution",
            r"(Connect|Read|Write|Pool) ?timed? ?out",
            r"Remote end closed connection",
            r"Server disconnected",
            r"(RemoteDisconnected|ConnectError|ConnectTimeout|ReadTimeout|ReadError)\b",
            r"Max retries exceeded with url(?!.*certificate)",
            r"SlowDown|RequestTimeTooSkewed|ServiceUnavailable|\(InternalError\)",  # S3
            r"\b429 Too Many Requests|\b50[234] (Bad Gateway|Service Unavailable|Gateway Time)",
            r"failed with error code 50[234]",  # MLflow's client
        )
    ),
    re.IGNORECASE,
)


class StageFailed(Exception):
    """A stage or a DVC command ended with an error; the message is the stage's own."""

    def __init__(self, message: object) -> None:
        super().__init__(masked(message))


class TransientFault(Exception):
    """Something outside the project did not answer or was busy; trying again may well succeed."""

    def __init__(self, message: object) -> None:
        super().__init__(masked(message))


def is_transient(error: BaseException) -> bool:
    """Return True if the same task may succeed later without anybody doing anything.

    A user's mistake and a stage's own failure are never transient, whatever words they use; but a
    UserError may be caused by a registry that did not answer.
    """
    if isinstance(error, TransientFault | ConnectionError):
        return True
    if isinstance(error, UserError) and error.__cause__ is not None:
        return is_transient(error.__cause__)
    if isinstance(error, UserError | ConfigError | StageFailed) or not isinstance(error, Exception):
        return False
    return bool(TRANSIENT.search(f"{type(error).__name__}: {error}"))


def retry_condition(_task: Any, _run: Any, state: Any) -> bool:
    """Retry a transient fault only; for Prefect's `retry_condition_fn`."""
    return isinstance(state.data, Exception) and is_transient(state.data)


def retry_options(settings: Orchestrate) -> dict[str, Any]:
    """Options of a Prefect task for retries: number, delays, condition."""
    delays = [settings.retry_delay_s * 2**number for number in range(settings.retries)]
    return {
        "retries": settings.retries,
        "retry_delay_seconds": delays or None,
        "retry_condition_fn": retry_condition,
    }
