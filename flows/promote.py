"""The gate and the moves of the champion on Prefect's pages.

    python -m flows.promote [VERSION] --why TEXT [--force] [--roll-back]
    prefect deployment run 'promote/local' --param why=TEXT [--param roll_back=true]

Reads and writes the registry; the verdict also goes to `artifacts/gate/`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.commands import run_as_module
from flows.faults import retry_options
from flows.pages import publish_verdict
from hpgr.config import load_config
from hpgr.registry import moves
from hpgr.registry.gate import ACCEPTED
from hpgr.registry.judge import judge


@flow(name="promote", persist_result=False)
def promote(
    version: int | None = None,
    why: str = "",
    roll_back: bool = False,
    force: bool = False,
    who: str | None = None,
) -> dict[str, Any]:
    """Make a version the champion, or the previous champion again; return the move.

    Args:
        version: registered version; None is the challenger.
        why: the reason, kept with the move.
        roll_back: go back to the previous champion instead.
        force: promote what the gate has not accepted.
        who: who decides; None is the account of the process, under a worker the worker's.
    """
    options = retry_options(load_config().orchestrate)
    return move_champion.with_options(**options)(version, why, roll_back, force, who)


@task(name="gate", task_run_name="gate", cache_policy=NO_CACHE)
def judge_model(version: int) -> dict[str, Any]:
    """Judge a registered version and put the verdict's table on the run's page.

    A refused challenger is an answer, not a failure.
    """
    verdict = judge(load_config(), version)
    reasons = "; ".join(verdict["reasons"])
    get_run_logger().info("gate: version %s %s: %s", version, verdict["verdict"], reasons)
    publish_verdict(verdict)
    return verdict


@task(name="promote", task_run_name="promote", cache_policy=NO_CACHE)
def move_champion(
    version: int | None, why: str, roll_back: bool, force: bool, who: str | None
) -> dict[str, Any]:
    """Move the alias and put who, when and why on the run's page."""
    via = f"Prefect flow run {flow_run.name} ({flow_run.id})"
    moved = moves.move(
        load_config(), version, why=why, back=roll_back, force=force, who=who, via=via
    )
    get_run_logger().info(moves.describe(moved))
    rows = "".join(f"| {key} | {value} |\n" for key, value in asdict(moved).items())
    create_markdown_artifact(
        key="champion",
        markdown=f"{moves.describe(moved)}\n\n| | |\n|---|---|\n{rows}",
        description="who serves now, and why",
    )
    return asdict(moved)


def judge_and_promote(version: int) -> dict[str, Any]:
    """Judge a registered version; promote what the gate accepts if `gate.promotes` says so.

    If somebody moves the champion in between, judge once more, against the new one.
    """
    options = retry_options(load_config().orchestrate)
    try:
        return _judge_and_promote(version, options)
    except moves.OldVerdict as error:
        get_run_logger().warning("%s; judged again", error)
        return _judge_and_promote(version, options)


def _judge_and_promote(version: int, options: dict[str, Any]) -> dict[str, Any]:
    verdict = judge_model.with_options(**options)(version)
    if verdict["verdict"] == ACCEPTED and load_config().gate.promotes:
        why = f"accepted by the gate: {verdict['reasons'][0]}"
        move_champion.with_options(**options)(version, why, False, False, None)
    return verdict


if __name__ == "__main__":
    run_as_module("promote")
