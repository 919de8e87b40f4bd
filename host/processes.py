"""Finding and ending processes by the environment they carry, which children inherit.

A process group or a parent's id is lost where a process in between is killed; a variable in the
environment is not. Reads /proc through psutil. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import psutil

STOP_GRACE_S = 20  # for a stage to write its checkpoint; Prefect's worker kills after 30

SCANS = 3  # a process may start another one between a look and the signal


def processes_with(variable: str, value: str) -> list[psutil.Process]:
    """Other processes of this user whose environment holds `variable` with `value`."""
    me = psutil.Process().pid
    return [p for p in psutil.process_iter() if p.pid != me and carries(p, variable, value)]


def carries(process: psutil.Process, variable: str, value: str) -> bool:
    """Whether its environment holds `variable` with `value`; no if gone or somebody else's."""
    try:
        return process.environ().get(variable) == value
    except (psutil.Error, OSError):
        return False


def end_with(variable: str, value: str, grace_s: float) -> int:
    """`end` all of `processes_with`, and what they started meanwhile; returns how many."""
    ended = 0
    for _ in range(SCANS):
        found = processes_with(variable, value)
        if not found:
            break
        ended += len(found)
        end(found, grace_s)
    return ended


def end(processes: Iterable[psutil.Process], grace_s: float) -> list[psutil.Process]:
    """SIGTERM to all, `grace_s` seconds for them to finish, then SIGKILL; returns those killed."""
    processes = list(processes)
    for process in processes:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    _, late = psutil.wait_procs(processes, timeout=grace_s)
    for process in late:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(late, timeout=5)
    return late
