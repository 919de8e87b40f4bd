"""Take new events into the log, then train on from the champion.

    hpgr refresh PATH [--profile quick] [--set section.key=value ...]

PATH is a file or folder in the format of the log (docs/refresh.md). A batch that breaks a limit is
refused: the run fails with every reason, and the log stays as it is. One that is in the log already
changes nothing; what an interruption left undone after it is done. Reads PATH and the registry.
Writes data/, data.dvc, base/, artifacts/, params.yaml (hpgr/profiles.py) and the MLflow store.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.commands import run_as_module
from flows.dvc_graph import dvc_output
from flows.dvc_stages import check_data, reproduce
from flows.faults import StageFailed, retry_options
from flows.given_path import given_path
from flows.monitor import watch
from flows.train import pipeline, write_params
from host.cancellation import recallable
from hpgr.config import Config, load_config
from hpgr.intake import acceptance
from hpgr.intake.incoming import BatchFinding, examine
from hpgr.profiles import with_params
from hpgr.registry.tracking import connect
from hpgr.registry.versions import CHAMPION, aliases
from hpgr.runtime import UserError, sole_run
from hpgr.workspace import HERE

FIGURES = {  # of batches.json: label and format
    "rows": ("rows", ",d"),
    "quarantined_share": ("quarantined", ".2%"),
    "duplicates": ("exact duplicates", ",d"),
    "repeated": ("in the log already", ",d"),
    "late": ("older than the log's end", ",d"),
    "events_per_day": ("events a day", ",.0f"),
    "events_per_day_before": ("events a day, newest of the log", ",.0f"),
    "item_drift": ("drift of the items", ".3f"),
    "action_drift": ("drift of the actions", ".3f"),
    "unknown_items": ("events with unknown items", ".2%"),
}


@flow(name="refresh", persist_result=False)
def refresh(
    incoming: str, profile: str | None = None, overrides: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Take a batch into the log, train from the champion; return what registered.json holds.

    Args:
        incoming: file or folder of new events; by a deployment, inside the project's folder.
        profile: name of a file in profiles/, written into params.yaml; None leaves what is there.
        overrides: `section.key` to value, written there on top; those of the section refresh are
            limits for this batch alone and are not written.
    """
    given = overrides or {}
    limits = {key: value for key, value in given.items() if key.startswith("refresh.")}
    source = given_path("incoming", incoming)
    with recallable(), sole_run(HERE.run_lock):
        write_params(profile, {k: value for k, value in given.items() if k not in limits})
        options = retry_options(load_config().orchestrate)
        require_champion.with_options(**options)()
        settle()
        check_data.with_options(**options)()
        reproduce("validate")  # what the batch is compared with
        try:
            verdict = judge(source, with_params(limits))
            if not verdict.taken:
                take_in(verdict)
        except (UserError, StageFailed):
            show_refusal()
            raise
        if acceptance.is_taking():  # new events came in: this time, or before an interruption
            start_from_champion.with_options(**options)()
            acceptance.finish()
        return pipeline()


@task(name="champion", task_run_name="champion", cache_policy=NO_CACHE)
def require_champion() -> None:
    """Fail before anything is touched if there is no model to go on from.

    Raises:
        UserError: the registry has no champion.
    """
    name = load_config().register_.model_name
    if CHAMPION not in aliases(connect(), name):
        raise UserError(
            f"refresh goes on from {name}@{CHAMPION}, and the registry has none: run the flow "
            "train (or `make run`) first"
        )


@task(name="settle", task_run_name="settle", cache_policy=NO_CACHE)
def settle() -> None:
    """Finish or undo what an interrupted refresh left."""
    if done := acceptance.settle(load_config().data):
        get_run_logger().warning(done)


@task(name="incoming", task_run_name="incoming", cache_policy=NO_CACHE)
def judge(incoming: Path, cfg: Config) -> BatchFinding:
    """Check the batch and show its figures on the run's page.

    Raises:
        UserError: it is refused, or cannot be read.
    """
    verdict = examine(cfg, incoming, evidence=True)
    if verdict.taken:
        get_run_logger().info("%s is in the log already: %s", incoming, verdict.taken)
        return verdict
    get_run_logger().info(verdict.figures())
    create_markdown_artifact(
        key="batch",
        markdown=page(verdict, acceptance.last_accepted()),
        description="the batch of new events beside the last one",
    )
    if verdict.reasons:
        acceptance.record(verdict.record)
        raise UserError(f"{verdict.refusal()}\nSee {HERE.rejected / 'report.html'}.")
    return verdict


def show_refusal() -> None:
    """Bring the monitoring page up to date and send its events, before the refusal is raised."""
    try:
        watch.with_options(**retry_options(load_config().orchestrate))()
    except Exception as error:  # must not take the place of why the batch was refused
        get_run_logger().warning("the monitoring page is not up to date: %s", error)


def page(verdict: BatchFinding, last: dict[str, Any] | None) -> str:
    """Show the batch's figures beside those of the last accepted one, and why it is refused."""

    def cell(entry: dict[str, Any] | None, key: str, form: str) -> str:
        value = entry.get(key) if entry else None
        return "" if value is None else format(value, form)

    rows = [
        f"| {label} | {cell(verdict.record, key, form)} | {cell(last, key, form)} |"
        for key, (label, form) in FIGURES.items()
    ]
    reasons = [f"- {reason}" for reason in verdict.reasons]
    return "\n".join(
        [
            f"**{'Refused' if reasons else 'Accepted'}**: `{verdict.record['source']}`",
            *(["", *reasons] if reasons else []),
            "",
            "| | this batch | the last one |",
            "|---|---|---|",
            *rows,
        ]
    )


def take_in(verdict: BatchFinding) -> None:
    """Make an accepted batch part of the log, or leave the log as it was.

    Raises:
        StageFailed: the validate stage refuses the log with this batch, which is noted as a
            refusal, or DVC failed.
        TransientFault: DVC was busy.
    """
    data = load_config().data
    if acceptance.is_taking():  # an earlier batch is in, but no training began on it
        acceptance.finish()
    try:
        place(verdict)
    except Exception:
        acceptance.undo(data)
        raise
    shutil.rmtree(HERE.rejected, ignore_errors=True)  # of an earlier batch
    try:
        reproduce("validate")
    except Exception as error:
        refused = HERE.rejected.is_dir()
        acceptance.undo(data, reason=str(error) if refused else None)
        get_run_logger().warning("%s is taken out again", verdict.record["source"])
        if not refused:  # killed, out of time, DVC busy: no judgement of the batch
            raise
        reproduce("validate")  # brings back what DVC deleted before the stage ran
        raise StageFailed(
            f"{verdict.record['source']} is refused, the log stays as it is: with it, {error}"
        ) from error
    acceptance.note()


@task(name="take in", task_run_name="take in", cache_policy=NO_CACHE)
def place(verdict: BatchFinding) -> None:
    """Put the batch beside the log and have data.dvc pin both."""
    folder = acceptance.begin(load_config().data, verdict)
    dvc_output("add", "data")
    get_run_logger().info("%s is now %s", verdict.record["source"], folder)


@task(name="base", task_run_name="base", cache_policy=NO_CACHE)
def start_from_champion() -> None:
    """Put the champion below base/, from where training starts: its vectors are kept."""
    from hpgr.registry.fill_base import fill_base

    base = fill_base(load_config())
    get_run_logger().info("training starts from %s version %s", base["name"], base["version"])


if __name__ == "__main__":
    run_as_module("refresh")
