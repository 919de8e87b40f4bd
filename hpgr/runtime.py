"""Atomic writes, locks, the error that a user sees, file hashes: shared by every stage.

Reads and writes only the paths it is given.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpgr.masking import masked

WRITER_WAIT_S = 60.0
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
TELEMETRY_OFF = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
}


class UserError(Exception):
    """A mistake in the user's input or set-up, in one message: found, expected, where, how to fix.

    The command line prints the message alone and exits with code 2. Secrets in it are masked, as it
    also goes to pages, logs and a flow's state.
    """

    def __init__(self, message: object) -> None:
        super().__init__(masked(message))


class DamagedFile(UserError, ValueError):
    """One of the project's own files is not whole: cut off, overwritten or edited by hand."""

    def __init__(self, path: Path, why: object, fix: str | None = None) -> None:
        """`fix` is by default DVC's for a stage's output, else to delete the file."""
        self.why = why
        if fix is None and "artifacts" in path.parts:
            fix = (
                "`dvc repro` brings it back from DVC's cache or makes it anew; where that changes "
                "nothing the cache is corrupted too: `hpgr cache`, then `dvc repro`"
            )
        super().__init__(f"{path} is damaged ({why}): {fix or 'bring it back or delete it'}")


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary file path beside `target` that replaces it when the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=scratch_prefix(target), dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())  # a power cut must not leave an empty file of this name
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that replaces it when the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=scratch_prefix(target), dir=target.parent))
    before = temporary.with_name(f"{temporary.name}_before")
    try:
        yield temporary
        temporary.chmod(0o755)
        # Two renames: a process killed here leaves the old folder or the new one, not half of it.
        if target.exists():
            target.replace(before)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


@contextmanager
def sole_writer(target: Path) -> Iterator[None]:
    """Hold the lock of an output; see `_held`.

    Raises:
        UserError: another process still writes `target` after WRITER_WAIT_S.
    """
    with _held(target.with_name(f".{target.name}.lock"), f"{target} is being written by"):
        yield


@contextmanager
def sole_run(lock: Path) -> Iterator[None]:
    """Hold a workspace for a whole run: its later stages read its params.yaml and base/.

    Args:
        lock: the workspace's `run_lock`.

    Raises:
        UserError: another process still holds it after WRITER_WAIT_S.
    """
    with _held(lock, "params.yaml and base/ are held for a whole run by"):
        yield


@contextmanager
def _held(lock: Path, busy: str) -> Iterator[None]:
    """Hold a lock that the system frees when the process ends.

    Waits a while: a process that was asked to stop may need a moment for its checkpoint.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        end = time.monotonic() + WRITER_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                other = f"process {file.read().strip()}"
            if time.monotonic() > end:
                raise UserError(
                    f"{busy} {other}: wait for its end, or stop it, and run the same command again"
                )
            time.sleep(0.1)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def scratch_prefix(target: Path) -> str:
    """Prefix of this process's temporary names beside `target`: `.TARGET.PID.RANDOM`.

    Removes what killed processes left there.
    """
    for path in target.parent.glob(f".{target.name}.*.*"):
        pid = path.name.split(".")[-2]
        if not pid.isdigit() or is_alive(int(pid)):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return f".{target.name}.{os.getpid()}."


def is_alive(pid: int) -> bool:
    """Return True if a process has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` atomically, in UTF-8."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Write `value` to `target` atomically as indented JSON; NaN is an error, not a token."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(source: Path, fix: str | None = None) -> Any:
    """Read JSON from `source`.

    Raises:
        DamagedFile: it is not valid JSON; `fix` is the advice in its message.
    """
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of the encoding too; nested too deep
        raise DamagedFile(source, error, fix) from error


def check_value(source: Path, name: str, value: Any, rule: tuple[Any, ...]) -> None:
    """Refuse a value of the JSON file `source` that breaks `rule`.

    Args:
        source: the file.
        name: the value's name there.
        value: as read.
        rule: a type and, for numbers, the smallest and largest value; or the allowed words.

    Raises:
        DamagedFile: the value breaks it; the message says what was expected.
    """
    kind, *limits = rule
    if isinstance(kind, str):
        good, expected = value in rule if isinstance(value, str) else False, " or ".join(rule)
    elif kind is bool:
        good, expected = isinstance(value, bool), "true or false"
    else:
        number = isinstance(value, int if kind is int else int | float)
        good = number and not isinstance(value, bool) and limits[0] <= value <= limits[1]
        what = "a whole number" if kind is int else "a number"
        expected = f"{what} from {limits[0]} to {limits[1]}"
    if not good:
        raise DamagedFile(source, f"{name} is {repr(value)[:40]}, expected {expected}")


def sha256_file(source: Path) -> str:
    """Return the hex sha256 of a file, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    with source.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def end_with_parent() -> None:
    """Have this process get a SIGTERM when the one that started it ends in any way (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
