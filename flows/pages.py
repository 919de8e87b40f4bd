"""A run's page in Prefect: tables, links to MLflow, a figure.

Reads the artifacts and the registry's addresses. Writes Prefect artifacts.
"""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.cache_policies import NO_CACHE

from hpgr.registry.judge import as_markdown
from hpgr.registry.mlflow_faults import answered
from hpgr.registry.summary import markdown_tables
from hpgr.registry.summary import verdict as on_validation
from hpgr.registry.tracking import CLASSIC, connect, mlflow_address
from hpgr.workspace import HERE


@answered()
def artifact_address(run: str, path: str) -> str:
    """Address of MLflow's page of one artifact of a run."""
    experiment = connect().get_run(run).info.experiment_id
    return f"{mlflow_address()}/#/experiments/{experiment}/runs/{run}/artifacts/{path}{CLASSIC}"


@task(name="page", task_run_name="page", cache_policy=NO_CACHE)
def publish(outcomes: dict[str, str], registered: dict[str, Any], verdict: dict[str, Any]) -> None:
    """Show the result of train and refresh: metrics, verdict, stages, report, the first figure."""
    name, version, run = registered["name"], registered["version"], registered["run_id"]
    report = artifact_address(run, "report.html")
    card = f"{mlflow_address()}/#/models/{name}/versions/{version}{CLASSIC}"
    stages = "".join(f"| {stage} | {outcome} |\n" for stage, outcome in outcomes.items())
    create_markdown_artifact(
        key="result",
        markdown=(
            f"{markdown_tables()}\n\n{on_validation()[1]}\n\n[{name} version {version}]({card}), "
            f"[evaluation report]({report})\n\n### Gate\n\n{as_markdown(verdict)}\n\n"
            f"### Stages\n\n| stage | |\n|---|---|\n{stages}"
        ),
        description="HPGR beside the baselines, the gate's verdict, what each stage did",
    )
    create_link_artifact(
        key="report",
        link=report,
        link_text="evaluation report in MLflow",
        description=f"the same file: {(HERE.evaluation / 'report.html').resolve()}",
    )
    for figure in sorted((HERE.evaluation / "figures").glob("*.png"))[:1]:
        create_image_artifact(
            key="figure",
            image_url=f"{mlflow_address()}/get-artifact?path=figures/{figure.name}&run_uuid={run}",
            description=figure.stem.replace("_", " "),
        )


def publish_verdict(verdict: dict[str, Any]) -> None:
    """Show the gate's checks as a table."""
    rows = [{**check, "passed": "yes" if check["passed"] else "NO"} for check in verdict["checks"]]
    create_table_artifact(
        key="gate",
        table=rows or [{"rule": "nothing to judge", "found": "; ".join(verdict["reasons"])}],
        description=as_markdown(verdict).splitlines()[0],
    )
