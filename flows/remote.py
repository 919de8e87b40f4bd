"""A stage on another machine: a worker in another clone computes it, DVC's remote carries the data.

The run that wants the stage pushes what the stage reads and starts the deployment `stage/POOL`
(flows/stage.py), which pushes the result with its entry of the run cache. Back here DVC finds that
entry and restores the result instead of computing it: DVC, not this module, judges that it is the
same. Reads and writes DVC's remote.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.deployments import run_deployment
from prefect.states import Cancelled, Cancelling

from flows.dvc_graph import changes, dvc_output, upstream
from flows.faults import StageFailed
from hpgr.data.base_folder import is_filled
from hpgr.runtime import read_json
from hpgr.workspace import HERE

CARRIED = (HERE.params, HERE.data_pin, HERE.dvc_lock)  # what differs between runs of one commit
POLL_S = 2.0


def run_elsewhere(stage: str, pool: str) -> None:
    """Have a worker of `pool` compute `stage`, and fetch the result into DVC's cache here.

    Nothing happens if the stage is up to date here. Whatever ends this early (cancel, time-out)
    cancels the run there.

    Raises:
        StageFailed: no remote, uncommitted code, or the run there did not succeed.
        TransientFault: DVC's remote does not answer.
    """
    if not changes(stage):
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
    carried = [path for path in CARRIED if path != HERE.data_pin or str(path) in needed]
    began: Any = run_deployment(
        f"stage/{pool}",
        parameters={
            "stage": stage,
            "commit": commit,
            "files": {str(path): path.read_text() for path in carried if path.is_file()},
            "base_version": base_version(),
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
    excluded = [f":!{path}" for path in CARRIED]
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *excluded)
    if changed:
        raise StageFailed(
            f"the clone at {Path.cwd()} has uncommitted changes, which no other clone can have; "
            f"commit or drop them:\n{changed}"
        )
    return _git("rev-parse", "HEAD")


def base_version() -> int | None:
    """Registered version of the model below base/; None if there is none."""
    return int(read_json(HERE.base / "base.json")["version"]) if is_filled(HERE.base) else None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StageFailed(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def _await(client: SyncPrefectClient, run_id: Any) -> State:
    """The final state of a run; an exception on the way, as a cancel is, cancels it."""
    try:
        while True:
            state = client.read_flow_run(run_id).state
            if state is not None and state.is_final():
                return state
            time.sleep(POLL_S)
    except BaseException:
        _cancel(client, run_id)
        raise


def _cancel(client: SyncPrefectClient, run_id: Any) -> None:
    """As the page's button does: ask a run that works to stop, cancel one that waits."""
    works = client.read_flow_run(run_id).state_type in (StateType.RUNNING, StateType.PENDING)
    message = "the run that asked for it was stopped"
    state: State = Cancelling(message=message) if works else Cancelled(message=message)
    client.set_flow_run_state(run_id, state)
