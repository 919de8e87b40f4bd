"""Batch scoring as a flow: the champion's answers for every user, with progress on the run's page.

    python -m flows.recommend [--k 10] [--at TIME] [--deny FILE] ...   without a server
    prefect deployment run 'recommend/local' --param k=20              with one

Reads params.yaml, artifacts/sessions/ and the registry. Writes artifacts/recommendations/.
"""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

import pyarrow.parquet as pq
from prefect import flow, task
from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE

from flows.commands import run_as_module
from flows.faults import retry_options
from flows.given_path import given_path
from host.cancellation import recallable
from hpgr.config import Config
from hpgr.profiles import for_request
from hpgr.serving.batch import Done, recommend_all

SHOWN_USERS = 5


@flow(name="recommend", persist_result=False)
def recommend(
    k: int | None = None,
    at: str | int | None = None,
    seen: Literal["keep", "drop"] | None = None,
    allow: str | None = None,
    deny: str | None = None,
) -> dict[str, Any]:
    """Recommend to every user of the log; return what the manifest holds and where it lies.

    Args:
        k: items for each user; None takes params.yaml's value, here and below.
        at: time of the request, ISO 8601 (UTC) or seconds since 1970.
        seen: keep or drop items that the user had before.
        allow: file of item ids, one a line: nothing else is recommended. From a deployment it must
            lie inside the project's folder.
        deny: the same for items that are never recommended.
    """
    lists = {"allow": allow, "deny": deny}
    files = {name: given_path(name, text) for name, text in lists.items() if text is not None}
    cfg = for_request(k=k, at=at, seen=seen, **files)
    with recallable():
        done = score.with_options(**retry_options(cfg.orchestrate))(cfg)
    publish(done)
    return {"folder": str(done.folder), "scored_users": done.scored_users, **done.manifest}


@task(name="score", task_run_name="score", cache_policy=NO_CACHE)
def score(cfg: Config) -> Done:
    """Score the parts that no earlier run has scored."""
    artifact = create_progress_artifact(0.0, key="recommend", description="users answered")
    assert isinstance(artifact, UUID)  # a coroutine only where one is running

    def progress(done: int, users: int) -> None:
        update_progress_artifact(artifact, 100.0 * done / users)

    return recommend_all(cfg, progress)


def publish(done: Done) -> None:
    """Put the first users' answers on the run's page, and say where all of them are."""
    model = done.manifest["model"]
    first = pq.read_table(done.folder / next(iter(sorted(done.manifest["parts"]))))
    users = list(dict.fromkeys(first["user_id"].to_pylist()))[:SHOWN_USERS]
    rows = [row for row in first.to_pylist() if row["user_id"] in users]
    create_table_artifact(
        key="recommendations",
        table=rows,
        description=(
            f"{model['name']} version {model['version']}, first {len(users)} of "
            f"{done.manifest['users']:,} users; {done.scored_users:,} scored in this run. All of "
            f"them: Parquet, one file a part, in `{done.folder.resolve()}`"
        ),
    )


if __name__ == "__main__":
    run_as_module("recommend")
