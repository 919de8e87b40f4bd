"""A worker of one pool in this clone: tidy up after its predecessor, then become Prefect's worker.

    python -m host.worker local
    PREFECT_API_URL=http://SERVER:4200/api python -m host.worker gpu       on another machine

Runs happen in this clone, one at a time: its DVC workspace carries no two. So a lock allows one
worker a pool and clone, and a pool's runs must all go to one clone: give each machine a pool.
Prefect's worker keeps a run's files in the temporary folder under a name that all users of a
machine share, and a killed one leaves them: each has a temporary folder of its own.
Reads PREFECT_API_URL. Writes .services/worker-POOL.{lock,tmp} and Prefect's server.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from prefect.client.orchestration import get_client

from host.prefect_server import ensure_pool, wait_for_server
from host.reaper import reap
from host.settings import HOME, SERVICES
from hpgr.folder import require_folder
from hpgr.masking import install as mask_output
from hpgr.runtime import UserError

SERVER_DEADLINE_S = 120


def worker_name(pool: str) -> str:
    """Name of this machine's and clone's worker, without the signs that Prefect refuses."""
    return re.sub("[/%&<>]", ":", f"{pool} of {os.uname().nodename}{Path.cwd()}")


def hold_lock(pool: str, folder: Path = SERVICES) -> int:
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


def temporary_folder(pool: str, folder: Path = SERVICES) -> Path:
    """An empty folder for the holder of the pool's lock."""
    path = (folder / f"worker-{pool}.tmp").resolve()
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def tidy_up(folder: Path = SERVICES) -> None:
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
        os.close(handle)  # `tidy_up` removed it after it was opened: this lock locks nothing


def work(pool: str) -> NoReturn:
    """Tidy up, then replace this process by Prefect's worker of `pool`.

    Raises:
        UserError: a worker of the pool runs here already, or no server answers.
    """
    name = worker_name(pool)
    hold_lock(pool)
    wait_for_server(SERVER_DEADLINE_S)
    with get_client(sync_client=True) as client:
        ensure_pool(client, pool)
        for run in reap(client, pool, name):
            print(f"run {run.name} was {run.state_name} without a worker", flush=True)
    os.environ |= {HOME: str(Path.cwd()), "TMPDIR": str(temporary_folder(pool))}
    command = ["-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    os.execv(sys.executable, [sys.executable, *command, "--name", name])


def main() -> None:
    """Entry point of `python -m host.worker POOL`."""
    mask_output()
    if len(sys.argv) != 2:
        sys.exit("usage: python -m host.worker POOL")
    try:
        require_folder()
        work(sys.argv[1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
