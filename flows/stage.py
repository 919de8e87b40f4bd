"""The flow that computes one stage in this clone for a run in another one (flows/remote.py).

    prefect deployment run stage/POOL      is what that run does

It checks that this clone has the same code, takes over parameters and hashes, pulls, runs the
stage, and pushes the result. Checkpoints go to the remote as well (host/remote_checkpoints.py):
another machine can go on from them. Reads and writes DVC's remote, params.yaml, data.dvc, dvc.lock
and base/.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.dvc_graph import dvc_output, upstream
from flows.dvc_stages import run_stage
from flows.faults import StageFailed, retry_options
from flows.remote import CARRIED, base_version, clean_commit
from host.cancellation import recallable
from host.remote_checkpoints import kept_in_remote
from hpgr.config import load_config
from hpgr.runtime import sole_run, write_text
from hpgr.workspace import HERE


@flow(name="stage", persist_result=False)
def stage_flow(
    stage: str, commit: str, files: dict[str, str], base_version: int | None = None
) -> str:
    """Compute one stage in this clone for a run in another; return what DVC did.

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
        if strange := sorted(files.keys() - set(map(str, CARRIED))):
            raise StageFailed(f"{strange[0]} is not a file that a run may bring along")
        with TemporaryDirectory() as scratch:
            coming = Path(scratch, HERE.params.name)
            coming.write_text(files.get(str(HERE.params), HERE.params.read_text()))
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
def bring(stage: str, version: int | None) -> None:
    """Bring what the stage reads: files from DVC's remote, the model below base/ from the registry.

    Args:
        stage: which one.
        version: see `stage_flow`; the registry is the one that both clones use.
    """
    if version != base_version():
        from hpgr.registry.fill_base import clear_base, fill_base

        if version is None:
            clear_base()
        else:
            fill_base(load_config(), version)
    dvc_output("pull", "--force", "--run-cache", *upstream(stage))


@task(name="send", task_run_name="send", cache_policy=NO_CACHE)
def send(stage: str) -> None:
    """Push the stage's result and its entry of the run cache to DVC's remote."""
    dvc_output("push", "--run-cache", stage)
