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
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.task_engine import TaskRunTimeoutError

from flows.faults import TRANSIENT, StageFailed, TransientFault, retry_options
from host.locks import drop_stale_locks
from host.processes import STOP_GRACE_S, end_with
from hpgr.cache import clean_cache
from hpgr.config import load_config
from hpgr.folder import require_repository
from hpgr.intake.public_logs import DATASETS, fetch

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
DVC_RUN = "HPGR_DVC_RUN"  # marks the processes of one `dvc` call
KILLED = re.compile(r"exited with (-9|137)$")  # the command itself, or the shell around it
NOT_STARTED = re.compile(r"ERROR: failed to reproduce '[^']*': (?!failed to run)(.+)")
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def stage_order() -> list[str]:
    """The stages of dvc.yaml, each after those it depends on.

    Raises:
        StageFailed: DVC cannot read its files.
    """
    names = [line.split()[0] for line in dvc_output("stage", "list", "--name-only").splitlines()]
    before: dict[str, set[str]] = {name: set() for name in names}
    for earlier, later in _edges():
        if earlier in before and later in before:
            before[later].add(earlier)
    return list(TopologicalSorter(before).static_order())


def upstream(stage: str) -> list[str]:
    """What the stage reads and DVC keeps, as targets of `dvc pull`: stages, `data.dvc`."""
    return sorted({earlier for earlier, later in _edges() if later == stage})


def is_current(stage: str) -> bool:
    """Whether the stage's record in dvc.lock is what lies in the workspace."""
    return not json.loads(dvc_output("status", stage, "--json") or "{}")


def _edges() -> list[tuple[str, str]]:
    """DVC's graph: (earlier, later), stages and .dvc files."""
    return re.findall(r'"([^"]+)" -> "([^"]+)"', dvc_output("dag", "--dot"))


@task(name="fetch", task_run_name="fetch", cache_policy=NO_CACHE)
def bring_log() -> None:
    """Bring the log where there is none: from DVC's cache, else the public one of data.path.

    A log of one's own that is missing is left to `check_data` to tell.

    Raises:
        UserError: it cannot be fetched.
    """
    data = load_config().data
    if data.path.exists():
        return
    try:
        dvc_output("checkout", DATA)
    except StageFailed:  # not in the cache: a fresh clone
        if data.path.name in DATASETS:
            fetch(data.path.name, data.path.parent)


@task(name="data", task_run_name="data", cache_policy=NO_CACHE)
def check_data() -> None:
    """Fail unless data/ is exactly what data.dvc pins; put it into DVC's cache if it is not there.

    Raises:
        StageFailed: data/ is missing or differs.
    """
    logger = get_run_logger()
    drop_stale_locks()
    if not Path(DATA).is_file():
        raise StageFailed(f"{DATA} not found: pin the raw log with `dvc add data`")
    status = json.loads(dvc_output("status", DATA, "--json") or "{}")
    found = {
        str(state)
        for changes in status.get(DATA, [])
        for outs in changes.values()
        for state in outs.values()
    }
    if found == {"not in cache"}:
        # Fetched, not restored by DVC. Without --force a commit refuses data that differ.
        try:
            dvc_output("commit", DATA)
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
    dvc_output("add", "data")


def reproduce(stage: str) -> str:
    """Run the task of one stage as `orchestrate` in params.yaml says; returns its outcome.

    Raises:
        StageFailed: the stage failed, or took longer than it may.
        TransientFault: DVC's lock or remote was busy or unreachable, and stayed so.
    """
    settings = load_config().orchestrate
    named = run_stage.with_options(
        name=stage,
        task_run_name=stage,
        timeout_seconds=settings.stage_timeout_s,
        **retry_options(settings),
    )
    try:
        return named(stage, settings.remote.get(stage))
    except TaskRunTimeoutError as error:
        raise StageFailed(
            f"stage {stage} took longer than orchestrate.stage_timeout_s "
            f"({settings.stage_timeout_s:g} s) and was stopped. Training left a checkpoint: run "
            "the flow again to go on from it, or raise the limit."
        ) from error


@task(cache_policy=NO_CACHE)
def run_stage(stage: str, pool: str | None = None) -> str:
    """Reproduce one stage; returns `ran`, `skipped` or `restored`.

    Args:
        stage: a stage of dvc.yaml.
        pool: the work pool whose worker, in another clone, computes it first; None: here.

    Raises:
        StageFailed: the stage failed; the message is what it printed.
        TransientFault: DVC could not even start, since its lock or remote was busy.
    """
    for _ in range(2):
        outcome = _compute(stage, pool)
        # DVC trusts its cache: what a disk has changed there comes back without a word.
        if outcome != RESTORED or not (damaged := clean_cache(stage)):
            return outcome
        names = ", ".join(map(str, damaged))
        get_run_logger().warning("stage %s: corrupted in DVC's cache, removed: %s", stage, names)
    raise StageFailed(
        f"stage {stage} came back corrupted twice ({names}): DVC's remote or the clone that "
        "computed it holds damaged files. Run `hpgr cache` there, then the flow again."
    )


def _compute(stage: str, pool: str | None) -> str:
    if pool is None:
        return _repro(stage)
    from flows.remote import run_elsewhere

    run_elsewhere(stage, pool)
    return _repro(stage, computed_by=pool)


def _repro(stage: str, computed_by: str | None = None) -> str:
    """`dvc repro --single-item`, its output in the run's log; see `run_stage`.

    A stage that a pool has computed is fetched: that DVC would rather run it here is an error.
    """
    logger = get_run_logger()
    outcome, tail, started = RAN, deque[str](maxlen=TAIL_LINES), False
    pull = () if computed_by is None else ("--pull",)
    with _dvc_process("repro", "--single-item", *pull, stage, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            line = line.rstrip()
            if line and not line.startswith(HINTS):
                logger.info(line)
                tail.append(line)
                started = started or line.startswith(f"Running stage '{stage}'")
                outcome = _outcome(line, stage) or outcome
                if started and computed_by is not None:
                    raise StageFailed(
                        f"what pool {computed_by} computed for {stage} does not belong to the "
                        "files here: something that it reads differs between the two clones"
                    )
    if process.returncode != 0:
        require_repository()
        if not started and TRANSIENT.search(text := "\n".join(tail)):
            raise TransientFault(f"stage {stage} could not start: {text}")
        message = failure_message(list(tail)) or f"dvc ended with code {process.returncode}"
        raise StageFailed(f"stage {stage} failed: {message}")
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
    the last line (of a traceback, the exception). DVC's own closing line says nothing of it, unless
    DVC could not start the stage, or the stage was killed: that is not tried again, since a stage
    that took all memory does so again. Empty only where nothing was printed.
    """
    if any(KILLED.search(line) for line in lines[-2:]):
        return (
            "it was killed from outside (SIGKILL), most often because memory ran out: `dmesg` says "
            "so. Free some or lower batch_tokens; the next run goes on from the last checkpoint."
        )
    if reasons := [found[1] for line in lines[-1:] if (found := NOT_STARTED.match(line))]:
        return reasons[0]
    own = [line for line in lines if not line.startswith("ERROR: failed to reproduce")]
    starts = [number for number, line in enumerate(own) if line.startswith("error: ")]
    return "\n".join(own[starts[-1] if starts else -1 :]).removeprefix("error: ")


@contextmanager
def _dvc_process(*arguments: str, stderr: int) -> Iterator[subprocess.Popen[str]]:
    """A running `dvc`; whatever ends the block early ends the process and its stage as well.

    It stays in this process's group: that is what a cancelled Prefect run signals.
    """
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [*DVC, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        errors="replace",
        env={**_environment(), DVC_RUN: mark},
        preexec_fn=partial(_die_with, os.getpid()),
    )
    finished = False
    try:
        yield process
        process.wait()
        finished = True
    finally:
        if not finished:
            # Not until the stage has ended too: the next run must not find it still writing.
            with _undisturbed():
                process.terminate()
                end_with(DVC_RUN, mark, STOP_GRACE_S)
                process.wait()
                drop_stale_locks()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep a second SIGTERM (flows/cancellation.py) waiting: it must not cut off a clean-up."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _die_with(parent: int) -> None:
    """A killed flow run must not leave a DVC that works on beside the next run's (Linux only)."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # killed before it was asked for
            os._exit(128 + signal.SIGTERM)


def _environment() -> dict[str, str]:
    """`hpgr` of this environment first on PATH; live output; progress bars at a log's pace.

    DVC starts stages with $SHELL, which for a service's user often is /usr/sbin/nologin.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    paced = {"PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "10"}
    return {**os.environ, **paced, "PATH": path, "SHELL": "/bin/sh"}


def dvc_output(*arguments: str) -> str:
    """What a `dvc` command that runs no stage prints.

    Raises:
        StageFailed: it failed; the message is DVC's.
        TransientFault: its lock or remote was busy or unreachable.
    """
    with _dvc_process(*arguments, stderr=subprocess.PIPE) as process:
        printed, told = process.communicate()
    if process.returncode != 0:
        require_repository()
        kind = TransientFault if TRANSIENT.search(told) else StageFailed
        raise kind(f"dvc {' '.join(arguments)}: {told.strip()}")
    return printed.strip()
