"""One worker a pool and clone: a lock that it holds, and a temporary folder that goes with it.

Prefect's worker keeps a run's files in the temporary folder under a name that all users of a
machine share, and a killed one leaves them. Reads and writes .services/worker-POOL.{lock,tmp}.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from hpgr.runtime import UserError

STATE = Path(".services")


def hold_lock(pool: str, folder: Path = STATE) -> int:
    """Take the clone's lock for `pool`, for as long as this process lives, and through `exec`.

    Returns:
        The file descriptor that holds it.

    Raises:
        UserError: a worker of the pool runs here already.
    """
    folder.mkdir(exist_ok=True)
    path = folder / f"worker-{pool}.lock"
    handle = _lock(path)
    if handle is None:
        raise UserError(
            f"a worker of pool {pool} runs in this folder already (process "
            f"{path.read_text() or 'unknown'}); two would write the same artifacts. Stop it "
            "(`make down`, or Ctrl-C where `make worker` runs), or start yours in another clone."
        )
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    os.set_inheritable(handle, True)
    return handle


def temporary_folder(pool: str, folder: Path = STATE) -> Path:
    """An empty folder for the holder of the pool's lock."""
    path = (folder / f"worker-{pool}.tmp").resolve()
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def tidy_up(folder: Path = STATE) -> None:
    """Remove what belonged to workers that are gone; a living one's lock stays."""
    for path in folder.glob("worker-*.lock"):
        handle = _lock(path)
        if handle is not None:
            shutil.rmtree(path.with_suffix(".tmp"), ignore_errors=True)
            path.unlink()
            os.close(handle)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of `path`; None if another process holds it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except FileNotFoundError:
            pass
        os.close(handle)  # removed after it was opened: whoever holds that one holds nothing
