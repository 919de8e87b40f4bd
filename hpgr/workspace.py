"""Every path of a run, and the table of its stages.

No other module holds a path of a run. `hpgr STAGE` and DVC use the workspace at the root of the
project; a benchmark cell has one of its own. A stage is a function of (config, workspace). The
graph itself is dvc.yaml's; a test compares it with the table. Reads and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Stage(NamedTuple):
    """One stage: `module` holds a function of the stage's name.

    `inputs` are what it reads and `output` what it writes, relative to the workspace's root;
    `params` are the sections and keys of params.yaml that it reads. The raw log (data.path) is an
    input of `validate` and lies where the parameters say.
    """

    module: str
    summary: str
    inputs: tuple[str, ...]
    output: str
    params: tuple[str, ...]


STAGES = {
    "validate": Stage(
        "hpgr.intake.validate",
        "Check the raw log against the contract; bad rows go to quarantine.",
        inputs=(),
        output="artifacts/validated",
        params=("data", "validate"),
    ),
    "sessionize": Stage(
        "hpgr.data.sessionize",
        "Cut sessions, build the vocabulary, split.",
        inputs=(
            "artifacts/validated/events.parquet",
            "artifacts/validated/items.parquet",
            "artifacts/validated/impressions.parquet",
            "base",
        ),
        output="artifacts/sessions",
        params=("sessionize", "evaluate.max_repeat_share", "evaluate.remove_history"),
    ),
    "pretrain": Stage(
        "hpgr.training.pretrain",
        "Stage 1: session-based masked item modeling.",
        inputs=(
            "base",
            "artifacts/sessions/arrays",
            "artifacts/sessions/actions.parquet",
            "artifacts/sessions/categories.parquet",
            "artifacts/sessions/items.parquet",
        ),
        output="artifacts/pretrain",
        params=(
            "model",
            "pretrain",
            "finetune.temperature",
            "finetune.loss",
            "finetune.full_items",
            "finetune.shared_negatives",
            "finetune.adagrad_rows",
            "finetune.adagrad_scale",
        ),
    ),
    "finetune": Stage(
        "hpgr.training.finetune",
        "Stage 2: retrieval and ranking.",
        inputs=(
            "base",
            "artifacts/sessions/arrays",
            "artifacts/sessions/lists",
            "artifacts/pretrain/config.json",
            "artifacts/pretrain/model.safetensors",
        ),
        output="artifacts/finetune",
        params=("model", "finetune"),
    ),
    "evaluate": Stage(
        "hpgr.evaluation.evaluate",
        "Judge the model beside the baselines; write the report.",
        inputs=(
            "artifacts/sessions/arrays",
            "artifacts/sessions/actions.parquet",
            "artifacts/sessions/impressions.parquet",
            "artifacts/sessions/items.parquet",
            "artifacts/sessions/users.parquet",
            "artifacts/pretrain/config.json",
            "artifacts/pretrain/curves.csv",
            "artifacts/finetune/config.json",
            "artifacts/finetune/curves.csv",
            "artifacts/finetune/model.safetensors",
        ),
        output="artifacts/evaluation",
        params=("data.path", "model.max_history", "finetune.device", "evaluate", "gate.metric"),
    ),
}


@dataclass(frozen=True)
class Workspace:
    """The files of one run below `root`.

    Args:
        root: the project's folder, or that of a benchmark cell.
        validated_log: folder of the validate stage where it lies outside `root`, since several
            runs share one validated log; None: inside.
        sessionized_log: likewise of the sessionize stage.
    """

    root: Path = Path()
    validated_log: Path | None = None
    sessionized_log: Path | None = None

    def output(self, stage: str) -> Path:
        """The folder that a stage writes."""
        shared = {"validate": self.validated_log, "sessionize": self.sessionized_log}
        return shared.get(stage) or self.root / STAGES[stage].output

    @property
    def params(self) -> Path:
        """Every tunable value, as in force."""
        return self.root / "params.yaml"

    @property
    def data_pin(self) -> Path:
        """DVC's pin of the raw log."""
        return self.root / "data.dvc"

    @property
    def dvc_lock(self) -> Path:
        """DVC's record of what each stage read and wrote."""
        return self.root / "dvc.lock"

    @property
    def artifacts(self) -> Path:
        """All that the stages and the commands write."""
        return self.root / "artifacts"

    @property
    def validated(self) -> Path:
        """Events, items and users as the contract accepts them, quarantine and report."""
        return self.output("validate")

    @property
    def sessions(self) -> Path:
        """The sessionized log: tables, and flat arrays below `arrays`."""
        return self.output("sessionize")

    @property
    def arrays(self) -> Path:
        """Flat arrays that training reads; see `hpgr.data.log`."""
        return self.sessions / "arrays"

    @property
    def lists(self) -> Path:
        """Flat arrays of the shown lists that training reads; see `hpgr.data.list_log`."""
        return self.sessions / "lists"

    @property
    def pretrained(self) -> Path:
        """The network of stage 1."""
        return self.output("pretrain")

    @property
    def finetuned(self) -> Path:
        """The trained network."""
        return self.output("finetune")

    @property
    def evaluation(self) -> Path:
        """Metrics, figures and the report."""
        return self.output("evaluate")

    @property
    def rejected(self) -> Path:
        """Evidence against a log or batch that was refused."""
        return self.artifacts / "rejected"

    @property
    def accepted(self) -> Path:
        """Records of the batches that were judged."""
        return self.artifacts / "accepted"

    @property
    def gate(self) -> Path:
        """The gate's last verdict."""
        return self.artifacts / "gate"

    @property
    def registered(self) -> Path:
        """The version that the last registration made or found."""
        return self.artifacts / "registered.json"

    @property
    def recommendations(self) -> Path:
        """Answers for every user."""
        return self.artifacts / "recommendations"

    @property
    def monitoring(self) -> Path:
        """The monitoring page."""
        return self.artifacts / "monitoring"

    @property
    def run_lock(self) -> Path:
        """Held for a whole run, whose later stages read what it set before the first."""
        return self.artifacts / ".run.lock"

    @property
    def checkpoints(self) -> Path:
        """Folders STAGE-KEY with a training's checkpoints."""
        return self.root / "checkpoints"

    @property
    def base(self) -> Path:
        """The model that training starts from; see `hpgr.data.base_folder`."""
        return self.root / "base"

    @property
    def store(self) -> Path:
        """MLflow's store where the environment names none."""
        return self.root / "mlflow" / "store"


HERE = Workspace()  # the current folder's
