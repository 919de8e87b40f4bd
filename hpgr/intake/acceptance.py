"""Take a batch into the log so that an interruption at any point can be undone or completed.

    artifacts/accepted/batches.json    a record of each batch that was judged, oldest first
    artifacts/accepted/taking.json     the batch that is being taken in; gone when training begins

A batch is in the log when its increment is in place, data.dvc pins it, and the validate stage
accepted the whole log. taking.json is written before the first of these steps and says how to undo
them all. Reads and writes data.dvc, the increments below `data.path`, and artifacts/accepted/.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpgr.intake.increments import FOLDER, next_name, place, remove
from hpgr.runtime import read_json, write_json, write_text
from hpgr.workspace import HERE, Workspace

if TYPE_CHECKING:
    from hpgr.config import Data
    from hpgr.intake.incoming import BatchFinding


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


def is_taking(workspace: Workspace = HERE) -> bool:
    """Return True if a batch is being taken in: begun, and not finished or undone."""
    return _file(workspace).is_file()


def begin(data: Data, finding: BatchFinding, workspace: Workspace = HERE) -> Path:
    """Put an accepted batch beside the log and return its increment's folder.

    What remains is to pin data/ and to validate the log; then `note` and `finish`, or `undo`.
    """
    name = next_name(data.path, finding.batch)
    pin = workspace.data_pin.read_text(encoding="utf-8")
    taking = {"increment": name, "pin": pin, "record": finding.record}
    write_json(_file(workspace), taking)
    return place(data.path, name, finding.files)


def note(workspace: Workspace = HERE) -> None:
    """Record the batch as accepted, once the validate stage has accepted the log with it."""
    entry = _taking(workspace)["record"]
    if last_accepted(workspace) != entry:  # an interruption after this line must not note it twice
        record(entry, workspace)


def finish(workspace: Workspace = HERE) -> None:
    """Close the acceptance: the batch is in the log, and training knows what it starts from."""
    note(workspace)
    _file(workspace).unlink()


def undo(data: Data, reason: str | None = None, workspace: Workspace = HERE) -> None:
    """Take the batch out of the log again and restore data.dvc.

    With a `reason` the batch is recorded as refused. Does nothing where none is being taken in.
    """
    if not is_taking(workspace):
        return
    taking, pin = _taking(workspace), workspace.data_pin
    remove(data.path, taking["increment"])
    if pin.read_text(encoding="utf-8") != taking["pin"]:
        write_text(pin, taking["pin"])
    if reason is not None:
        record({**taking["record"], "accepted": False, "reasons": [reason]}, workspace)
    _file(workspace).unlink()


def settle(data: Data, workspace: Workspace = HERE) -> str | None:
    """Undo what an interrupted refresh left half-way; return what was done, None for nothing.

    Where the validate stage has accepted the log with the increment, the batch is in and recorded,
    and taking.json stays: training has not begun.
    """
    if not is_taking(workspace):
        return None
    name = _taking(workspace)["increment"]
    path = workspace.validated / "summary.json"
    inputs = read_json(path)["inputs"] if path.is_file() else {}
    is_placed = (data.path / FOLDER / name).is_dir()
    if is_placed and any(file.startswith(f"{FOLDER}/{name}/") for file in inputs):
        note(workspace)
        return f"an interrupted refresh took in {name}; training continues from there"
    undo(data, workspace=workspace)
    return f"an interrupted refresh had begun to take in {name}: undone"


def _file(workspace: Workspace) -> Path:
    return workspace.accepted / "taking.json"


def _taking(workspace: Workspace) -> dict[str, Any]:
    fix = (
        "bring data/ back with `git checkout data.dvc` and `dvc checkout data.dvc`, "
        "delete the file and start the refresh again"
    )
    return read_json(_file(workspace), fix)
