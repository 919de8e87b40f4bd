"""The judged: the sessionized log and the trained network, as their stages left them.

Reads `artifacts/sessions/arrays` and `artifacts/finetune/`. Writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpgr.config import Config
from hpgr.data.log import EventLog
from hpgr.evaluation.model_protocols import RankingModel
from hpgr.runtime import UserError, read_json
from hpgr.workspace import HERE, Workspace


@dataclass(frozen=True)
class Judged:
    """The trained network: its name, whether its ranking head was trained, what chose its weights.

    `candidates` says what pCTR was trained on (`finetune.candidates`, never auto), `places` whether
    it reads the place of an item in its list; `monitor` is the score on validation that early
    stopping watched; `temperature` that of the softmax in its loss, None where it does not rank.
    """

    name: str
    network: RankingModel
    ranks: bool
    candidates: str
    places: bool
    monitor: str
    temperature: float | None

    @property
    def ranks_events(self) -> bool:
        """PCTR answers for the log's own labels."""
        return self.ranks and self.candidates == "events"


def open_log(workspace: Workspace = HERE) -> EventLog:
    """The sessionized log.

    Raises:
        UserError: it is missing or is not what the contract says.
    """
    try:
        return EventLog.open(workspace.arrays)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} not found: run `hpgr sessionize` first") from error


def load_judged(cfg: Config, workspace: Workspace) -> Judged:
    """The trained network.

    Raises:
        UserError: there is none.
    """
    path = workspace.finetuned / "config.json"
    if not path.is_file():
        raise UserError(f"{path} not found: run `hpgr finetune` first")
    config = read_json(path)
    return Judged(
        name=config["model"]["name"],
        network=load_network(workspace.finetuned, cfg.finetune.device),
        ranks=config["ranking"],
        candidates=config.get("candidates", "events"),
        places=config.get("lists", False),
        monitor=config.get("training", {}).get("monitor", "validation_ndcg@10"),
        temperature=config["finetune"]["temperature"] if config["ranking"] else None,
    )


def load_network(folder: Path, device: str) -> RankingModel:
    """A trained network; torch is imported here, so that the command line stays light."""
    from hpgr.model.scoring import Scorer

    return Scorer.load(folder, device)
