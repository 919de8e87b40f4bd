"""History of champions and the scores of every version, when it was made and later.

Reads the registry: versions with the metrics of their runs, champion scores recorded by past gate
runs, the alias `champion`, and the moves that `hpgr.registry.moves` recorded. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hpgr.config import Config
from hpgr.metrics import BASKET, protocols_of
from hpgr.registry.judge import ROLLED_BACK_TAG
from hpgr.registry.mlflow_faults import answered
from hpgr.registry.pipeline_runs import metric_name
from hpgr.registry.tracking import connect
from hpgr.registry.versions import CHAMPION, aliases
from hpgr.workspace import HERE, Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Version:
    """A registered version with the deciding metric, if it has one.

    `protocol` names the queries; figures of two protocols are not comparable.
    """

    number: int
    made: datetime
    protocol: str | None
    metric: float | None
    base: str | None
    rolled_back: bool = False
    run_id: str | None = None


@dataclass(frozen=True)
class Reign:
    """Start of a version's time as champion."""

    version: int
    since: datetime
    by: str
    why: str


@dataclass(frozen=True)
class Score:
    """The deciding metric of a champion on the test queries of the time `at`, from a gate run."""

    version: int
    at: datetime
    protocol: str
    metric: float


@dataclass(frozen=True)
class History:
    """Versions by number, reigns and scores in time order, and the present champion."""

    versions: dict[int, Version]
    reigns: tuple[Reign, ...]
    champion: int | None
    scores: tuple[Score, ...] = ()

    @property
    def current(self) -> Version | None:
        """The version that is champion now; None without a champion."""
        return self.versions.get(self.champion) if self.champion else None


@answered()
def history(cfg: Config, workspace: Workspace = HERE) -> History:
    """Read the history of the model `register.model_name` from the registry.

    Without a recorded move the champion's reign starts when it was made.
    """
    client, name = connect(workspace), cfg.register_.model_name
    champion = aliases(client, name).get(CHAMPION)
    found = list(client.search_model_versions(f"name='{name}'"))
    versions = {version.number: version for version in _versions(client, cfg, found)}
    scores = sorted(_scores(cfg, found), key=lambda score: score.at)
    reigns = tuple(sorted(_moves(client, cfg), key=lambda reign: reign.since))
    if not reigns and champion in versions:
        reigns = (Reign(champion, versions[champion].made, "", "no move is recorded"),)
    return History(versions, reigns, champion, tuple(scores))


def _versions(
    client: MlflowClient, cfg: Config, registered: Iterable[ModelVersion]
) -> Iterator[Version]:
    wanted = cfg.gate.metric
    figure = metric_name(wanted.removeprefix(BASKET))
    for found in registered:
        run = client.get_run(str(found.run_id))
        metrics = {
            protocol: run.data.metrics.get(f"{protocol}.{figure}")
            for protocol in protocols_of(wanted)
        }
        protocol = next((key for key, value in metrics.items() if value is not None), None)
        yield Version(
            number=int(found.version),
            made=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
            protocol=protocol,
            metric=metrics[protocol] if protocol else None,
            base=run.data.tags.get("base.version"),
            rolled_back=ROLLED_BACK_TAG in found.tags,
            run_id=run.info.run_id,
        )


def _scores(cfg: Config, registered: Iterable[ModelVersion]) -> Iterator[Score]:
    """Yield champion scores recorded by past gate runs, in the metric that decides today."""
    for found in registered:
        tags = found.tags
        if tags.get("gate.metric") == cfg.gate.metric:
            yield Score(
                int(tags["gate.champion"]),
                datetime.fromisoformat(tags["gate.judged_at"]),
                tags["gate.protocol"],
                float(tags["gate.champion_metric"]),
            )


def _moves(client: MlflowClient, cfg: Config) -> Iterator[Reign]:
    """Yield the reigns that finished moves began; an interrupted move may have changed nothing."""
    import mlflow

    experiment = client.get_experiment_by_name(cfg.register_.experiment)
    if experiment is None:
        return
    wanted = (
        f"tags.`move.alias` = '{CHAMPION}' and tags.`move.model` = '{cfg.register_.model_name}' "
        "and attributes.status = 'FINISHED'"
    )
    for run in mlflow.search_runs([experiment.experiment_id], wanted, output_format="list"):
        tags = run.data.tags
        yield Reign(
            int(tags["move.to"]),
            datetime.fromisoformat(tags["move.at"]),
            tags.get("move.by", ""),
            tags.get("move.why", ""),
        )
