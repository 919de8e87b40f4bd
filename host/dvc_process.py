"""A running `dvc` that ends with its caller: its stage too, and its locks.

DVC handles no SIGTERM: it ends at once, and its stage goes on to write a checkpoint. The caller
waits for that, or the next run would find the stage still writing. Reads and writes what DVC does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from host.dvc_lock import drop_stale_locks
from host.processes import STOP_GRACE_S, end_with

DVC = (sys.executable, "-m", "dvc")
DVC_RUN = "HPGR_DVC_RUN"  # marks the processes of one call
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@contextmanager
def dvc_process(*arguments: str, stderr: int) -> Iterator[subprocess.Popen[str]]:
    """Start `dvc`; an exception in the block ends the process and its stage.

    It stays in this process's group: that is what a cancelled Prefect run signals.

    Args:
        arguments: of `dvc`.
        stderr: `subprocess.STDOUT` or `subprocess.PIPE`.
    """
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        [*DVC, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        errors="replace",
        env={**_environment(), DVC_RUN: mark},
        preexec_fn=partial(_die_with, os.getpid()),
    ) as process:
        try:
            yield process
            process.wait()
        except BaseException:
            with _sigterm_held_back():
                process.terminate()
                end_with(DVC_RUN, mark, STOP_GRACE_S)
                process.wait()
                drop_stale_locks()
            raise


def _environment() -> dict[str, str]:
    """Put this environment's `hpgr` first on PATH; live output, progress bars at a log's pace.

    DVC starts stages with $SHELL, which is /usr/sbin/nologin for many a service's user.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    paced = {"PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "10"}
    return {**os.environ, **paced, "PATH": path, "SHELL": "/bin/sh"}


def _die_with(parent: int) -> None:
    """End this process when `parent` is killed (Linux only)."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # killed before that
            os._exit(128 + signal.SIGTERM)


@contextmanager
def _sigterm_held_back() -> Iterator[None]:
    """Let a second SIGTERM (host/cancellation.py) wait: it must not cut off a clean-up."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
