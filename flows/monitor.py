"""Watch over the champion: thresholds as a table, a page, an event for each breach.

    python -m flows.monitor                       without a server
    prefect deployment run 'monitor/local'        with server and worker

An automation on the event `hpgr.threshold.breached` sends it on (docs/monitoring.md). Reads the
registry and artifacts/. Writes artifacts/monitoring/.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from flows.commands import run_as_module
from flows.pages import artifact_address
from hpgr.config import load_config
from hpgr.monitoring import thresholds as monitoring

BREACHED = "hpgr.threshold.breached"


@flow(name="monitor", persist_result=False)
def monitor() -> list[str]:
    """Judge every threshold; return the names of the breached ones, which are no failure."""
    return watch()


@task(name="monitor", task_run_name="monitor", cache_policy=NO_CACHE)
def watch() -> list[str]:
    """Judge every threshold, put the table on the run's page and send an event for each breach."""
    found = monitoring.monitor(load_config())
    logger = get_run_logger()
    for line in monitoring.as_text(found).splitlines():
        logger.warning(line) if "is breached" in line else logger.info(line)
    create_table_artifact(
        key="monitoring",
        table=monitoring.as_rows(found),
        description=f"thresholds of params.yaml's section monitor, champion {found.champion}",
    )
    if found.run:
        create_link_artifact(
            key="monitoring-page",
            link=artifact_address(found.run, "monitoring/report.html"),
            link_text="monitoring page in MLflow",
            description=f"the same file: {found.report.resolve()}",
        )
    for threshold in found.breaches:
        emit_event(event=BREACHED, resource=_resource(found), payload=_payload(found, threshold))
    return [threshold.name for threshold in found.breaches]


def _resource(found: monitoring.Monitoring) -> dict[str, str]:
    return {
        "prefect.resource.id": f"hpgr.model.{found.model}",
        "prefect.resource.name": found.model,
    }


def _payload(found: monitoring.Monitoring, threshold: monitoring.Threshold) -> dict[str, Any]:
    return {
        "threshold": f"monitor.{threshold.name}",
        "meaning": threshold.meaning,
        "value": threshold.value,
        "limit": threshold.limit,
        "fix": threshold.fix,
        "champion": found.champion,
        "report": str(found.report.resolve()),
    }


if __name__ == "__main__":
    run_as_module("monitor")
