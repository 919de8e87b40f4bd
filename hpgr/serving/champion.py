"""The model that is served: the registry's champion, and a watch that follows the alias.

Only a version's bundle is fetched, data without code, and it is answered with this installation's
code: nothing from the registry is executed here. Reads the MLflow registry.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpgr.config import Config
from hpgr.masking import masked
from hpgr.registry.mlflow_faults import answered, describe
from hpgr.registry.tracking import connect
from hpgr.registry.versions import CHAMPION, bundle_of, find_champion
from hpgr.runtime import UserError
from hpgr.serving.recommender import Recommender, load_bundle
from hpgr.workspace import HERE, Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A loaded version: what it is, since when (seconds, UTC) it exists and is served."""

    recommender: Recommender
    name: str
    version: int
    run_id: str
    registered_at: float
    loaded_at: float


@answered()
def load_champion(cfg: Config, workspace: Workspace = HERE) -> Served:
    """The registry's champion.

    Raises:
        UserError: the registry has none, cannot be reached, or the version cannot be read.
    """
    client, name = connect(workspace), cfg.register_.model_name
    return load(find_champion(client, name))


def load(version: ModelVersion) -> Served:
    """Fetch the version's bundle and load it onto the best device that is there.

    Raises:
        UserError: the version's files cannot be fetched, or not be read.
    """
    with bundle_of(version.name, int(version.version)) as folder:
        recommender = load_bundle(
            folder,
            f"{version.name} version {version.version}",
            "promote another version or register again",
        )
    return Served(
        recommender=recommender,
        name=version.name,
        version=int(version.version),
        run_id=str(version.run_id),
        registered_at=version.creation_timestamp / 1000,
        loaded_at=time.time(),
    )


class Champion:
    """The champion, looked up regularly; a reader of `served` gets one whole model.

    A failed look leaves the model that is there: `problem` then says what is wrong. Attributes are
    replaced, never changed in place, so that readers in other threads need no lock.
    """

    def __init__(
        self,
        name: str,
        client: Callable[[], MlflowClient],
        prepare: Callable[[Recommender], None] = lambda _: None,
    ) -> None:
        """`client` connects to the registry, at the first look; `prepare` is done to a version."""
        self.name, self._prepare = name, prepare
        self.served: Served | None = None
        self.problem: str | None = f"no look into the registry for {name}@{CHAMPION} yet"
        self._connect = client
        self._client: MlflowClient | None = None

    def look(self) -> None:
        """Ask the registry once, and take its champion if it is another version."""
        try:
            self._client = self._client or self._connect()
            version = find_champion(self._client, self.name)
            found = (int(version.version), str(version.run_id))
            if self.served is None or found != (self.served.version, self.served.run_id):
                served = load(version)
                self._prepare(served.recommender)
                logger.info("serving %s version %s", served.name, served.version)
                self.served = served
            problem = None
        except UserError as error:
            problem = str(error)
        except Exception as error:  # the watch must outlive every failure of the registry
            problem = masked(describe(error) or repr(error))
        if problem not in (None, self.problem):
            kept = f"; version {self.served.version} stays" if self.served else ""
            logger.warning("%s%s", problem, kept)
        self.problem = problem

    def watch(self, every_s: float, stop: threading.Event) -> None:
        """Look until `stop` is set, `every_s` seconds apart."""
        while not stop.is_set():
            self.look()
            stop.wait(every_s)
