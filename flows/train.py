"""The main flow: every stage in DVC's order, then registration.

    python -m flows.train [--profile full] [--set section.key=value ...]    without a server
    prefect deployment run 'train/local' --param profile=full               with server and worker

Reads params.yaml and data/. Writes params.yaml (flows/params.py), artifacts/ and the MLflow store.
"""

from __future__ import annotations

import argparse
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.faults import TransientFault, is_transient, retry_options
from flows.launch import add_overrides, launch, read_overrides
from flows.params import set_params
from flows.stages import check_data, reproduce, stage_order
from hpgr.config import PARAMS_FILE, load_config
from hpgr.registry.register import register
from hpgr.registry.stages import STAGES
from hpgr.registry.summary import markdown_tables
from hpgr.registry.tracking import tracking_uri


@flow(name="train", persist_result=False)
def train(profile: str | None = None, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run every stage, then register the model; returns what registered.json holds.

    Args:
        profile: a name below `profiles` in params.yaml; None leaves the file's own.
        overrides: `section.key` to value, on top of params.yaml.
    """
    changed = set_params({**(overrides or {}), **({"profile": profile} if profile else {})})
    get_run_logger().info(
        "profile %s; changed in %s: %s", load_config().profile, PARAMS_FILE, changed
    )
    return pipeline()


def pipeline() -> dict[str, Any]:
    """The part that train and refresh share: stages, registration, the run's page."""
    options = retry_options(load_config().orchestrate)
    check_data.with_options(**options)()
    outcomes = {stage: reproduce(stage) for stage in stage_order()}
    registered = register_model.with_options(**options)()
    publish(outcomes, registered)
    return registered


@task(name="register", task_run_name="register", cache_policy=NO_CACHE)
def register_model() -> dict[str, Any]:
    """Register the artifacts' model in MLflow; a model that is there already is left as it is.

    Raises:
        TransientFault: MLflow does not answer.
    """
    try:
        return register(load_config())
    except Exception as error:
        if not is_transient(error):
            raise
        raise TransientFault(
            f"MLflow at {tracking_uri()} does not answer, so the model is not registered: {error}. "
            "Start it and run the flow again: every stage is done, only the registration is left."
        ) from error


def publish(outcomes: dict[str, str], registered: dict[str, Any]) -> None:
    """Put the table of metrics, what each stage did and the report's place on the run's page."""
    evaluation = STAGES["evaluate"].output
    stages = "".join(f"| {stage} | {outcome} |\n" for stage, outcome in outcomes.items())
    create_markdown_artifact(
        key="result",
        markdown=(
            f"{markdown_tables()}\n\n**{registered['name']}** version {registered['version']}, "
            f"alias `{registered['alias']}`\n\n| stage | |\n|---|---|\n{stages}"
        ),
        description="HPGR beside the baselines, model version, what each stage did",
    )
    create_link_artifact(
        key="report",
        link=(evaluation / "report.html").resolve().as_uri(),
        link_text="evaluation report",
        description="self-contained HTML on the machine that ran the flow",
    )


def main() -> None:
    """Entry point of `python -m flows.train`."""
    parser = argparse.ArgumentParser(prog="python -m flows.train", description="Run the flow train")
    parser.add_argument("--profile", help="name below `profiles` in params.yaml")
    add_overrides(parser)
    arguments = parser.parse_args()
    launch(train, profile=arguments.profile, overrides=read_overrides(parser, arguments.overrides))


if __name__ == "__main__":
    main()
