"""The bridge to DVC: the stages in DVC's own order, one Prefect task runs one stage.

A task is `dvc repro --single-item STAGE`: DVC decides whether the stage runs, is skipped or comes
back from the run cache, and the task reports which. Its output goes line by line into the run's
log. Reads dvc.yaml through the `dvc` command. Writes what the stages write.
"""

from __future__ import annotations

import re
import subprocess
from collections import deque

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.task_engine import TaskRunTimeoutError

from flows.dvc_graph import changes, dvc_output
from flows.faults import TRANSIENT, StageFailed, TransientFault, retry_options
from flows.remote import run_elsewhere
from host.dvc_lock import drop_stale_locks
from host.dvc_process import dvc_process
from hpgr.cache import clean_cache
from hpgr.config import load_config
from hpgr.folder import require_repository
from hpgr.intake.public_logs import DATASETS, fetch
from hpgr.workspace import HERE

RAN, SKIPPED, RESTORED = "ran", "skipped", "restored"
HINTS = (  # DVC's advice after each stage, of no use in a run's log
    "To track the changes with git",
    "\tgit add ",
    "To enable auto staging",
    "\tdvc config core.autostage",
    "Use `dvc push`",
)
TAIL_LINES = 30  # of output kept for the message of a failed stage
KILLED = re.compile(r"exited with (-9|137)$")  # the command itself, or the shell around it
NOT_STARTED = re.compile(r"ERROR: failed to reproduce '[^']*': (?!failed to run)(.+)")


@task(name="fetch", task_run_name="fetch", cache_policy=NO_CACHE)
def bring_log() -> None:
    """Bring the log if there is none: from DVC's cache, else the public one of data.path.

    A missing log of the user's own is left to `check_data` to report.

    Raises:
        UserError: it cannot be fetched.
    """
    data = load_config().data
    if data.path.exists():
        return
    try:
        dvc_output("checkout", str(HERE.data_pin))
    except StageFailed:  # not in the cache: a fresh clone
        if data.path.name in DATASETS:
            fetch(data.path.name, data.path.parent)


@task(name="data", task_run_name="data", cache_policy=NO_CACHE)
def check_data() -> None:
    """Fail unless data/ is exactly what data.dvc pins; put it into DVC's cache if it is not there.

    Raises:
        StageFailed: data/ is missing or differs.
    """
    drop_stale_locks()
    pin = str(HERE.data_pin)
    if not HERE.data_pin.is_file():
        raise StageFailed(f"{pin} not found: pin the raw log with `dvc add data`")
    found = {
        state for change in changes(pin) for states in change.values() for state in states.values()
    }
    if found == {"not in cache"}:
        # Fetched, not restored by DVC. Without --force a commit refuses data that differ.
        try:
            dvc_output("commit", pin)
            found = set()
        except StageFailed:
            found = {"modified"}
    if found:
        raise StageFailed(
            f"data/ is not what {pin} pins ({', '.join(sorted(found))}). Bring the pinned log "
            f"back with `hpgr fetch NAME` or `dvc checkout {pin}`, or accept data/ as it is "
            "with `dvc add data`."
        )
    get_run_logger().info("data/ is what %s pins", pin)


def reproduce(stage: str) -> str:
    """Run the task of one stage as `orchestrate` in params.yaml says; return its outcome.

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
    """Reproduce one stage; return `ran`, `skipped` or `restored`.

    Args:
        stage: a stage of dvc.yaml.
        pool: the work pool whose worker, in another clone, computes it first; None: here.

    Raises:
        StageFailed: the stage failed; the message is what it printed.
        TransientFault: DVC could not even start, since its lock or remote was busy.
    """
    for _ in range(2):
        if pool is not None:
            run_elsewhere(stage, pool)
        outcome = _repro(stage, computed_by=pool)
        # DVC trusts its cache: it restores what a disk has changed there without a warning.
        if outcome != RESTORED or not (damaged := clean_cache(stage)):
            return outcome
        names = ", ".join(map(str, damaged))
        get_run_logger().warning("stage %s: corrupted in DVC's cache, removed: %s", stage, names)
    raise StageFailed(
        f"stage {stage} came back corrupted twice ({names}): DVC's remote or the clone that "
        "computed it holds damaged files. Run `hpgr cache` there, then the flow again."
    )


def _repro(stage: str, computed_by: str | None) -> str:
    """`dvc repro --single-item`, its output in the run's log; see `run_stage`.

    A stage that a pool has computed is fetched: that DVC would rather run it here is an error.
    """
    logger = get_run_logger()
    outcome, tail, started = RAN, deque[str](maxlen=TAIL_LINES), False
    pull = () if computed_by is None else ("--pull",)
    with dvc_process("repro", "--single-item", *pull, stage, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            line = line.rstrip()
            if not line or line.startswith(HINTS):
                continue
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
    """The outcome that a line of DVC's output names for the stage, or None."""
    if line.startswith(f"Stage '{stage}' didn't change"):
        return SKIPPED
    if line.startswith(f"Stage '{stage}' is cached"):
        return RESTORED
    return None


def failure_message(lines: list[str]) -> str:
    """The reason of a failure, from a failed stage's last lines.

    That is the message after `error: `, which every stage prints for a user's mistake; failing that
    the last line (of a traceback, the exception). DVC's own closing line says nothing about it,
    unless DVC could not start the stage, or the stage was killed: that is not tried again, since a
    stage that took all memory does so again. Empty only if nothing was printed.
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
