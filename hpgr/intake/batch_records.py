"""Records of the batches of new events that were judged, oldest first.

    artifacts/accepted/batches.json

Refused batches are recorded too. Reads and writes that file alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpgr.runtime import read_json, write_json
from hpgr.workspace import HERE, Workspace


def records_file(workspace: Workspace = HERE) -> Path:
    """The file of all records."""
    return workspace.accepted / "batches.json"


def records(workspace: Workspace = HERE) -> list[dict[str, Any]]:
    """One record for each judged batch, oldest first.

    Raises:
        DamagedFile: the file is not whole.
    """
    path = records_file(workspace)
    return (
        read_json(path, "delete it; a new list begins with the next batch")
        if path.is_file()
        else []
    )


def record(entry: dict[str, Any], workspace: Workspace = HERE) -> None:
    """Append the record of one judged batch."""
    write_json(records_file(workspace), [*records(workspace), entry])


def last_accepted(workspace: Workspace = HERE) -> dict[str, Any] | None:
    """The record of the batch that was taken in last; None before the first."""
    return next((entry for entry in reversed(records(workspace)) if entry["accepted"]), None)
