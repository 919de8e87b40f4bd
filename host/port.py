"""Become a server on a port, once nothing of a killed predecessor listens there any more.

    python -m host.port PORT MODULE [ARGUMENT ...]

Some servers run in a child process. Killed with -9, the parent leaves that child on the port, and
no successor could start. Reads HPGR_SERVICES and the table of connections. Writes nothing.
"""

from __future__ import annotations

import os
import sys

import psutil

from host.processes import carries, end

GRACE_S = 10
MARK = "HPGR_SERVICES"  # what `make up` starts carries it: the folder whose services these are


def listeners(port: int) -> list[psutil.Process]:
    """Processes that listen on a TCP port, as far as this user may know."""
    pids = set()
    for process in psutil.process_iter():
        try:
            connections = process.net_connections("tcp")
        except (psutil.Error, OSError):
            continue
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
            pids.add(process.pid)
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


def is_leftover(process: psutil.Process, folder: str) -> bool:
    """Whether a service of `folder` started it that is gone: who adopted it is none of them."""
    try:
        parent = process.parent()
    except psutil.Error:
        return False
    adopted = parent is None or not carries(parent, MARK, folder)
    return adopted and carries(process, MARK, folder)


def main() -> None:
    """Entry point of `python -m host.port`."""
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        sys.exit("usage: python -m host.port PORT MODULE [ARGUMENT ...]")
    folder = os.environ.get(MARK, "")
    end([p for p in listeners(int(sys.argv[1])) if is_leftover(p, folder)], GRACE_S)
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])


if __name__ == "__main__":
    main()
