"""A stage on another machine: a worker in another clone computes it, DVC's remote carries the data.

The run that wants the stage pushes what the stage reads and starts the deployment `stage/POOL`. The
worker there checks that its clone has the same code, takes over parameters and hashes, pulls, runs
the stage, and pushes the result with its entry of the run cache. Back here DVC finds that entry and
restores the result instead of computing it: DVC, not this module, judges that it is the same.
Checkpoints go to the remote as well (see checkpoints.py): another machine can go on from them.
Reads and writes DVC's remote; there also params.yaml, data.dvc, dvc.lock and base/.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.deployments import run_deployment
from prefect.states import Cancelled, Cancelling

from flows.cancellation import recallable
from flows.dvc_stages import DATA, dvc_output, is_current, run_stage, upstream
from flows.faults import StageFailed, retry_options
from flows.remote_checkpoints import kept_in_remote
from hpgr.config import PARAMS_FILE, load_config
from hpgr.data.base_folder import is_filled
from hpgr.runtime import read_json, sole_run, write_text
from hpgr.workspace import HERE

CARRIED = (str(PARAMS_FILE), DATA, "dvc.lock")  # what differs between runs of one commit
POLL_S = 2.0


def run_elsewhere(stage: str, pool: str) -> None:
    """Have a worker of `pool` compute `stage`, and fetch the result into DVC's cache here.

    Nothing happens if the stage is up to date here. Whatever ends this early (cancel, time-out)
    cancels the run there.

    Raises:
        StageFailed: no remote, uncommitted code, or the run there did not succeed.
        TransientFault: DVC's remote does not answer.
    """
    if is_current(stage):
        return
    logger = get_run_logger()
    if not dvc_output("remote", "list"):
        raise StageFailed(
            f"orchestrate.remote sends {stage} to pool {pool}, but DVC has no remote to carry the "
            "data: `dvc remote add --local -d NAME URL`, here and in the other clone"
        )
    commit = clean_commit()
    needed = upstream(stage)
    dvc_output("push", *needed)
    # The other clone's data.dvc pins its data/, which only a stage that reads it takes from here.
    carried = [name for name in CARRIED if name != DATA or name in needed]
    began: Any = run_deployment(
        f"stage/{pool}",
        parameters={
            "stage": stage,
            "commit": commit,
            "files": {name: Path(name).read_text() for name in carried if Path(name).is_file()},
            "base_version": _base_version(),
        },
        timeout=0,
    )
    logger.info("stage %s waits for a worker of pool %s: run %s", stage, pool, began.name)
    with get_client(sync_client=True) as client:
        state = _await(client, began.id)
    if state.type != StateType.COMPLETED:
        raise StageFailed(f"stage {stage} on pool {pool} ended {state.name}: {state.message}")
    dvc_output("fetch", "--run-cache", *needed)


def clean_commit() -> str:
    """The commit of this clone's code, which no change in the folder may contradict.

    Raises:
        StageFailed: tracked files other than those that a run brings along were changed.
    """
    excluded = [f":!{name}" for name in CARRIED]
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *excluded)
    if changed:
        raise StageFailed(
            f"the clone at {Path.cwd()} has uncommitted changes, which no other clone can have; "
            f"commit or drop them:\n{changed}"
        )
    return _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StageFailed(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def _base_version() -> int | None:
    return int(read_json(HERE.base / "base.json")["version"]) if is_filled(HERE.base) else None


def _take_base(version: int | None) -> None:
    """Have the same model below base/ as the clone that asks; from the registry that both use."""
    if version == _base_version():
        return
    from hpgr.registry.fill_base import clear_base, fill_base

    if version is None:
        clear_base()
    else:
        fill_base(load_config(), version)


def _await(client: SyncPrefectClient, run_id: Any) -> State:
    """The final state of a run; cancels it where this process is told to stop."""
    final = False
    try:
        while True:
            state = client.read_flow_run(run_id).state
            if state is not None and state.is_final():
                final = True
                return state
            time.sleep(POLL_S)
    finally:
        if not final:
            _cancel(client, run_id)


def _cancel(client: SyncPrefectClient, run_id: Any) -> None:
    """As the button does it: a run that works is asked to stop, one that waits is cancelled."""
    works = client.read_flow_run(run_id).state_type in (StateType.RUNNING, StateType.PENDING)
    message = "the run that asked for it was stopped"
    state: State = Cancelling(message=message) if works else Cancelled(message=message)
    client.set_flow_run_state(run_id, state)


@flow(name="stage", persist_result=False)
def stage_flow(
    stage: str, commit: str, files: dict[str, str], base_version: int | None = None
) -> str:
    """Compute one stage in this clone for a run in another; returns what DVC did.

    Args:
        stage: a stage of dvc.yaml.
        commit: the commit that the other clone is at; this one must be there too.
        files: text of params.yaml and dvc.lock there, and of data.dvc if the stage reads the log.
        base_version: registered version below base/ there, from which training starts; None: none.

    Raises:
        StageFailed: the commits differ, the code here was changed, or the stage failed.
    """
    with recallable(), sole_run(HERE.run_lock):
        if clean_commit() != commit:
            raise StageFailed(
                f"the clone at {Path.cwd()} is at commit {clean_commit()[:12]}, the run needs "
                f"{commit[:12]}: `git fetch && git checkout {commit[:12]}` there, then run again"
            )
        if strange := sorted(files.keys() - set(CARRIED)):
            raise StageFailed(f"{strange[0]} is not a file that a run may bring along")
        with TemporaryDirectory() as scratch:
            coming = Path(scratch, PARAMS_FILE)
            coming.write_text(files.get(str(PARAMS_FILE), PARAMS_FILE.read_text()))
            load_config(coming)  # a wrong one is not kept
        for name, text in files.items():
            write_text(Path(name), text)
        options = retry_options(load_config().orchestrate)
        bring.with_options(**options)(stage, base_version)
        with kept_in_remote(stage):
            outcome = run_stage.with_options(name=stage, task_run_name=stage, **options)(stage)
        send.with_options(**options)(stage)
        return outcome


@task(name="bring", task_run_name="bring", cache_policy=NO_CACHE)
def bring(stage: str, base_version: int | None) -> None:
    """What the stage reads: the model below base/, and files from DVC's remote."""
    _take_base(base_version)
    dvc_output("pull", "--force", "--run-cache", *upstream(stage))


@task(name="send", task_run_name="send", cache_policy=NO_CACHE)
def send(stage: str) -> None:
    """The stage's result and its entry of the run cache, to DVC's remote."""
    dvc_output("push", "--run-cache", stage)
