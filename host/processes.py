"""Finding and ending processes: by the environment they carry, which children inherit, or a port.

A process group or a parent's id is lost where a process in between is killed; a variable in the
environment is not. Reads /proc through psutil. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import psutil

STOP_GRACE_S = 20  # for a stage to write its checkpoint; Prefect's worker kills after 30
SCANS = 3  # a process may start another one between a look and the signal


def processes_with(variable: str, value: str) -> list[psutil.Process]:
    """Other processes of this user whose environment holds `variable` with `value`."""
    me = psutil.Process().pid
    return [p for p in psutil.process_iter() if p.pid != me and _carries(p, variable, value)]


def _carries(process: psutil.Process, variable: str, value: str) -> bool:
    try:
        return process.environ().get(variable) == value
    except (psutil.Error, OSError):  # gone, or somebody else's
        return False


def listeners(port: int) -> list[psutil.Process]:
    """Processes that listen on a TCP port, as far as this user may know."""

    def listens(process: psutil.Process) -> bool:
        try:
            connections = process.net_connections("tcp")
        except (psutil.Error, OSError):
            return False
        return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)

    return [process for process in psutil.process_iter() if listens(process)]


def end_with(variable: str, value: str, grace_s: float) -> int:
    """`end` all of `processes_with` and what they started meanwhile; return how many."""
    ended = 0
    for _ in range(SCANS):
        found = processes_with(variable, value)
        if not found:
            break
        ended += len(found)
        end(found, grace_s)
    return ended


def end(processes: Iterable[psutil.Process], grace_s: float) -> list[psutil.Process]:
    """SIGTERM to all, `grace_s` seconds for them to finish, then SIGKILL; return those killed."""
    processes = list(processes)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, late = psutil.wait_procs(processes, timeout=grace_s)
    for process in late:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(late, timeout=5)
    return late
