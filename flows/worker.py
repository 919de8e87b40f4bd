"""A worker of one pool in this clone: tidy up after its predecessor, then become Prefect's worker.

    python -m flows.worker local
    PREFECT_API_URL=http://SERVER:4200/api python -m flows.worker gpu       on another machine

Runs happen in this clone, one at a time: its DVC workspace carries no two. So a lock allows one
worker a pool and clone, and a pool's runs must all go to one clone: give each machine a pool.
Reads PREFECT_API_URL. Writes .services/worker-POOL.lock and Prefect's server.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

from prefect.client.orchestration import get_client

from flows.reaper import reap
from flows.server import HOME, ensure_pool, wait_for_server
from hpgr.runtime import UserError

STATE = Path(".services")
SERVER_DEADLINE_S = 120


def hold_lock(pool: str, folder: Path = STATE) -> int:
    """Take the clone's lock for `pool`, for as long as this process lives, and through `exec`.

    Returns:
        The file descriptor that holds it.

    Raises:
        UserError: a worker of the pool runs here already.
    """
    folder.mkdir(exist_ok=True)
    path = folder / f"worker-{pool}.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 20).decode() or "unknown"
        os.close(handle)
        raise UserError(
            f"a worker of pool {pool} runs in this folder already (process {holder}); two would "
            "write the same artifacts. Stop it (`make down`), or start yours in another clone."
        ) from None
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    os.set_inheritable(handle, True)
    return handle


def main() -> None:
    """Entry point of `python -m flows.worker POOL`."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m flows.worker POOL")
    pool = sys.argv[1]
    try:
        hold_lock(pool)
        wait_for_server(SERVER_DEADLINE_S)
        with get_client(sync_client=True) as client:
            ensure_pool(client, pool)
            for run in reap(client, pool):
                print(f"run {run.name} was {run.state_name} without a worker", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    os.environ[HOME] = str(Path.cwd())
    name = f"{pool} of {os.uname().nodename}"
    command = ["-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    os.execv(sys.executable, [sys.executable, *command, "--name", name])


if __name__ == "__main__":
    main()
