"""The bridge to DVC: the stages in DVC's own order, one Prefect task runs one stage.

A task is `dvc repro --single-item STAGE`: DVC decides whether the stage runs, is skipped or comes
back from the run cache, and the task says which. Its output goes line by line into the run's log.
Reads dvc.yaml through the `dvc` command. Writes what the stages write.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

DVC = (sys.executable, "-m", "dvc")
DATA = "data.dvc"
RAN, SKIPPED, RESTORED = "ran", "skipped", "restored"
HINTS = (  # DVC's advice after each stage, of no use in a run's log
    "To track the changes with git",
    "\tgit add ",
    "To enable auto staging",
    "\tdvc config core.autostage",
    "Use `dvc push`",
)
TAIL_LINES = 30  # of output kept for the message of a failed stage
STOP_GRACE_S = 30  # for a stage to write its checkpoint
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class StageFailed(Exception):
    """A stage or a DVC command ended with an error; the message is the stage's own."""


def stage_order() -> list[str]:
    """The stages of dvc.yaml, each after those it depends on.

    Raises:
        StageFailed: DVC cannot read its files.
    """
    names = [line.split()[0] for line in _dvc_output("stage", "list", "--name-only").splitlines()]
    edges = re.findall(r'"([^"]+)" -> "([^"]+)"', _dvc_output("dag", "--dot"))
    before: dict[str, set[str]] = {name: set() for name in names}
    for earlier, later in edges:
        if earlier in before and later in before:
            before[later].add(earlier)
    return list(TopologicalSorter(before).static_order())


@task(name="data", task_run_name="data", cache_policy=NO_CACHE)
def check_data() -> None:
    """Fail unless data/ is exactly what data.dvc pins; put it into DVC's cache if it is not there.

    Raises:
        StageFailed: data/ is missing or differs.
    """
    logger = get_run_logger()
    if not Path(DATA).is_file():
        raise StageFailed(f"{DATA} not found: pin the raw log with `dvc add data`")
    status = json.loads(_dvc_output("status", DATA, "--json") or "{}")
    found = {
        str(state)
        for changes in status.get(DATA, [])
        for outs in changes.values()
        for state in outs.values()
    }
    if found == {"not in cache"}:
        # Fetched, not restored by DVC. Without --force a commit refuses data that differ.
        try:
            _dvc_output("commit", DATA)
            found = set()
        except StageFailed:
            found = {"modified"}
    if found:
        raise StageFailed(
            f"data/ is not what {DATA} pins ({', '.join(sorted(found))}). Bring the pinned log "
            "back with `hpgr fetch NAME` or `dvc checkout data.dvc`, or accept data/ as it is "
            "with `dvc add data`."
        )
    logger.info("data/ is what %s pins", DATA)


def pin_data() -> None:
    """Have data.dvc pin data/ as it is.

    Raises:
        StageFailed: DVC could not.
    """
    _dvc_output("add", "data")


@task(cache_policy=NO_CACHE)
def run_stage(stage: str) -> str:
    """Reproduce one stage; returns `ran`, `skipped` or `restored`.

    Raises:
        StageFailed: the stage failed; the message is what it printed.
    """
    logger = get_run_logger()
    outcome, tail = RAN, deque[str](maxlen=TAIL_LINES)
    with _dvc_process("repro", "--single-item", stage) as process:
        assert process.stdout is not None
        for line in process.stdout:
            line = line.rstrip()
            if line and not line.startswith(HINTS):
                logger.info(line)
                tail.append(line)
                outcome = _outcome(line, stage) or outcome
    if process.returncode != 0:
        raise StageFailed(f"stage {stage} failed: {failure_message(list(tail))}")
    logger.info("stage %s: %s", stage, outcome)
    return outcome


def _outcome(line: str, stage: str) -> str | None:
    """What a line of DVC's says about the stage, if anything."""
    if line.startswith(f"Stage '{stage}' didn't change"):
        return SKIPPED
    if line.startswith(f"Stage '{stage}' is cached"):
        return RESTORED
    return None


def failure_message(lines: list[str]) -> str:
    """What went wrong, from a failed stage's last lines.

    That is the message after `error: `, which every stage prints for a user's mistake; failing that
    the last line (of a traceback, the exception). DVC's own closing line says nothing of it.
    """
    own = [line for line in lines if not line.startswith("ERROR: failed to reproduce")]
    starts = [number for number, line in enumerate(own) if line.startswith("error: ")]
    return "\n".join(own[starts[-1] if starts else -1 :]).removeprefix("error: ")


@contextmanager
def _dvc_process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A running `dvc`; whatever ends the block early ends the process and its stage as well.

    It stays in this process's group: that is what a cancelled Prefect run signals.
    """
    process = subprocess.Popen(
        [*DVC, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_environment(),
        preexec_fn=_die_with_parent,
    )
    try:
        yield process
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _die_with_parent() -> None:
    """A killed flow run must not leave a DVC that works on beside the next run's (Linux only)."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _environment() -> dict[str, str]:
    """`hpgr` of this environment first on PATH; live output; progress bars at a log's pace."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    paced = {"PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "10"}
    return {**os.environ, **paced, "PATH": path}


def _dvc_output(*arguments: str) -> str:
    done = subprocess.run(
        [*DVC, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        raise StageFailed(f"dvc {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def as_task(stage: str) -> Any:
    """The task of one stage, under the stage's name."""
    return run_stage.with_options(name=stage, task_run_name=stage)
