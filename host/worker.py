"""A worker of one pool in this clone: tidy up after its predecessor, then become Prefect's worker.

    python -m host.worker local
    PREFECT_API_URL=http://SERVER:4200/api python -m host.worker gpu       on another machine

Runs happen in this clone, one at a time: its DVC workspace carries no two. So a lock allows one
worker a pool and clone, and a pool's runs must all go to one clone: give each machine a pool.
Reads PREFECT_API_URL. Writes .services/worker-POOL.* and Prefect's server.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from prefect.client.orchestration import get_client

from host.prefect_server import HOME, ensure_pool, wait_for_server
from host.reaper import reap
from host.worker_lock import hold_lock, temporary_folder
from hpgr.folder import require_folder
from hpgr.masking import install as mask_output
from hpgr.runtime import UserError

SERVER_DEADLINE_S = 120


def worker_name(pool: str) -> str:
    """Of this machine and clone, without the signs that Prefect allows in no name."""
    return re.sub("[/%&<>]", ":", f"{pool} of {os.uname().nodename}{Path.cwd()}")


def main() -> None:
    """Entry point of `python -m host.worker POOL`."""
    mask_output()
    if len(sys.argv) != 2:
        sys.exit("usage: python -m host.worker POOL")
    pool, name = sys.argv[1], worker_name(sys.argv[1])
    try:
        require_folder()
        hold_lock(pool)
        wait_for_server(SERVER_DEADLINE_S)
        with get_client(sync_client=True) as client:
            ensure_pool(client, pool)
            for run in reap(client, pool, name):
                print(f"run {run.name} was {run.state_name} without a worker", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    os.environ |= {HOME: str(Path.cwd()), "TMPDIR": str(temporary_folder(pool))}
    command = ["-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    os.execv(sys.executable, [sys.executable, *command, "--name", name])


if __name__ == "__main__":
    main()
