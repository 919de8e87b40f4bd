"""The main flow: every stage in DVC's order, then registration and the gate.

    hpgr train [--profile full] [--set section.key=value ...]               without a server
    prefect deployment run 'train/local' --param profile=full               with server and worker

Reads params.yaml and data/. Writes params.yaml (hpgr/profiles.py), artifacts/ and MLflow's store.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.commands import run_as_module
from flows.dvc_graph import stage_order
from flows.dvc_stages import bring_log, check_data, reproduce
from flows.faults import TransientFault, is_transient, retry_options
from flows.monitor import watch
from flows.pages import publish
from flows.promote import judge_and_promote
from host.cancellation import recallable
from hpgr.config import load_config
from hpgr.profiles import set_params
from hpgr.registry.fill_base import clear_base
from hpgr.registry.mlflow_faults import public
from hpgr.registry.register import register
from hpgr.registry.tracking import tracking_uri
from hpgr.runtime import sole_run
from hpgr.workspace import HERE


@flow(name="train", persist_result=False)
def train(profile: str | None = None, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run every stage, register the model and let the gate judge it.

    Args:
        profile: name of a file in profiles/, written into params.yaml; None leaves what is there.
        overrides: `section.key` to value, written there on top.

    Returns:
        What registered.json holds, and the gate's `verdict`.
    """
    with recallable(), sole_run(HERE.run_lock):
        write_params(profile, overrides)
        start_from_nothing()
        bring_log.with_options(**retry_options(load_config().orchestrate))()
        return pipeline()


def write_params(profile: str | None, overrides: dict[str, Any] | None) -> None:
    """Write what a run was given into params.yaml, and say what changed."""
    for change in set_params(overrides, profile):
        get_run_logger().info("params.yaml: %s", change)


@task(name="base", task_run_name="base", cache_policy=NO_CACHE)
def start_from_nothing() -> None:
    """Empty base/: this flow trains from nothing; `refresh` starts from the champion."""
    clear_base()


def pipeline() -> dict[str, Any]:
    """Run stages, registration, gate, the run's page and thresholds, for train and refresh."""
    options = retry_options(load_config().orchestrate)
    check_data.with_options(**options)()
    outcomes = {stage: reproduce(stage) for stage in stage_order()}
    registered = register_model.with_options(**options)()
    verdict = judge_and_promote(registered["version"])
    publish.with_options(**options)(outcomes, registered, verdict)
    watch.with_options(**options)()
    return {**registered, "verdict": verdict["verdict"]}


@task(name="register", task_run_name="register", cache_policy=NO_CACHE)
def register_model() -> dict[str, Any]:
    """Register the artifacts' model in MLflow; leave one that is registered already as it is.

    Raises:
        TransientFault: MLflow does not answer.
    """
    try:
        return register(load_config())
    except Exception as error:
        if not is_transient(error):
            raise
        raise TransientFault(
            f"MLflow at {public(tracking_uri())} does not answer, so the model is not registered: "
            f"{error}. "
            "Start it and run the flow again: every stage is done, only the registration is left."
        ) from error


if __name__ == "__main__":
    run_as_module("train")
