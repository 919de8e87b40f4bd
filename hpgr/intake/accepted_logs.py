"""The raw logs that the validate stage has accepted; the next log is compared with them.

    artifacts/accepted/summary.json    by source: digest, rows and time span of each accepted log

DVC deletes the output of the stage before it runs; this file lies outside it and stays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpgr.intake.increments import FOLDER, digest_of
from hpgr.runtime import read_json, write_json
from hpgr.workspace import HERE, Workspace

KEPT = ("accepted", "first_timestamp", "last_timestamp")  # of the stage's summary


def last_accepted(
    source: str, inputs: dict[str, str], workspace: Workspace = HERE
) -> dict[str, Any] | None:
    """The log accepted before the one with these `inputs`; None for the first.

    A log that was accepted before is compared with what it was compared with then, so that
    repeating a run repeats its outputs. A log with increments is compared with the longest part of
    it that was accepted: a log whose last increment was taken out again is no measure.

    Args:
        source: format and file of the events.
        inputs: sha256 of each raw file.
        workspace: where the record lies.

    Raises:
        DamagedFile: the record is not whole.
    """
    history = _history(workspace).get(source, [])
    digests = [log["digest"] for log in history]
    digest = digest_of(inputs)
    before = history[: digests.index(digest)] if digest in digests else history
    digests = digests[: len(before)]
    newest_first = sorted({_increment(name) for name in inputs} - {""}, reverse=True)
    part = dict(inputs)
    for increment in newest_first:
        part = {name: value for name, value in part.items() if _increment(name) != increment}
        if (found := digest_of(part)) in digests:
            return history[digests.index(found)]
    return before[-1] if before else None


def remember(
    source: str, inputs: dict[str, str], summary: dict[str, Any], workspace: Workspace = HERE
) -> None:
    """Record an accepted log, once; arguments as in `last_accepted`, and the stage's summary."""
    history = _history(workspace)
    logs = history.setdefault(source, [])
    digest = digest_of(inputs)
    if digest not in [log["digest"] for log in logs]:
        logs.append({"digest": digest} | {name: summary[name] for name in KEPT})
        write_json(_file(workspace), history)


def _file(workspace: Workspace) -> Path:
    return workspace.accepted / "summary.json"


def _history(workspace: Workspace) -> dict[str, list[dict[str, Any]]]:
    path, fix = _file(workspace), "delete it; the next log is then compared with none before it"
    return read_json(path, fix) if path.exists() else {}


def _increment(name: str) -> str:
    """Folder of the increment that an input lies in; empty for the base."""
    folder, _, rest = name.partition("/")
    return rest.partition("/")[0] if folder == FOLDER else ""
