"""Taking a batch into the log, so that an interruption at any point can be made good.

    artifacts/accepted/batches.json    every batch that was judged, oldest first
    artifacts/accepted/taking.json     the one that is being taken in; gone when training begins

A batch is in the log when its increment is in place, data.dvc pins it, and the validate stage
accepted the whole log. taking.json is written before the first of these and says how to undo them
all. Reads and writes data.dvc, the increments below `data.path`, and the files above.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpgr.config import Data
from hpgr.intake.increments import FOLDER, next_name, place, remove
from hpgr.intake.validate import ACCEPTED, VALIDATED
from hpgr.runtime import DamagedFile, read_json, write_json, write_text

if TYPE_CHECKING:
    from hpgr.intake.incoming import Verdict

BATCHES = ACCEPTED.parent / "batches.json"
TAKING = ACCEPTED.parent / "taking.json"
PIN = Path("data.dvc")


def batches() -> list[dict[str, Any]]:
    """Every batch that was judged, oldest first."""
    return _read(BATCHES, "delete it; batches are then listed anew") if BATCHES.is_file() else []


def record(entry: dict[str, Any]) -> None:
    """Append one judged batch to batches.json."""
    write_json(BATCHES, [*batches(), entry])


def last_accepted() -> dict[str, Any] | None:
    """The batch that was taken in last; None before the first."""
    return next((batch for batch in reversed(batches()) if batch["accepted"]), None)


def begin(data: Data, verdict: Verdict) -> Path:
    """Put an accepted batch beside the log; returns its increment's folder.

    What is left is to pin data/ and to validate the log; then `note` and `finish`, or `undo`.
    """
    name = next_name(data.path, verdict.batch)
    pin = PIN.read_text(encoding="utf-8")
    write_json(TAKING, {"increment": name, "pin": pin, "record": verdict.record})
    return place(data.path, name, verdict.files)


def note() -> None:
    """Note the batch that is being taken in as accepted: the validate stage took it."""
    entry = _taking()["record"]
    if last_accepted() != entry:  # an interruption after this line must not note it twice
        record(entry)


def finish() -> None:
    """What is being taken in is in the log, and training knows what it starts from."""
    note()
    TAKING.unlink()


def undo(data: Data, reason: str | None = None) -> None:
    """Take the batch that is being taken in out again, and bring data.dvc back.

    With a `reason` it is noted as refused. Does nothing where none is being taken in.
    """
    if not TAKING.is_file():
        return
    taking = _taking()
    remove(data.path, taking["increment"])
    if PIN.read_text(encoding="utf-8") != taking["pin"]:
        write_text(PIN, taking["pin"])
    if reason is not None:
        record({**taking["record"], "accepted": False, "reasons": [reason]})
    TAKING.unlink()


def settle(data: Data) -> str | None:
    """Undo what an interrupted refresh left half-way; returns what was done, None for nothing.

    Where the validate stage has accepted the log with the increment, the batch is in and noted, and
    taking.json stays: training has not begun.
    """
    if not TAKING.is_file():
        return None
    name = _taking()["increment"]
    path = VALIDATED / "summary.json"
    inputs = read_json(path)["inputs"] if path.is_file() else {}
    there = (data.path / FOLDER / name).is_dir()
    if there and any(file.startswith(f"{FOLDER}/{name}/") for file in inputs):
        note()
        return f"an interrupted refresh took in {name}; training goes on from there"
    undo(data)
    return f"an interrupted refresh had begun to take in {name}: undone"


def _taking() -> dict[str, Any]:
    return _read(
        TAKING,
        "bring data/ back with `git checkout data.dvc` and `dvc checkout data.dvc`, "
        "delete the file and start the refresh again",
    )


def _read(path: Path, cure: str) -> Any:
    """JSON of a file that is no stage's output, so that DVC cannot bring it back."""
    try:
        return read_json(path)
    except DamagedFile as error:
        raise DamagedFile(path, error.__cause__, cure) from error
