"""The stages by name: the one table that the command line, lineage and the contracts read.

The graph itself is dvc.yaml's; a stage's parameters are the section of its name in params.yaml.
Reads and writes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ARTIFACTS = Path("artifacts")


class Stage(NamedTuple):
    """One stage: `module` holds a function of the stage's name that takes the `Config`."""

    module: str
    output: Path
    summary: str


STAGES = {
    "validate": Stage(
        "hpgr.intake.validate",
        ARTIFACTS / "validated",
        "Check the raw log against the contract; bad rows go to quarantine.",
    ),
    "sessionize": Stage(
        "hpgr.data.sessionize",
        ARTIFACTS / "sessions",
        "Cut sessions, build the vocabulary, split.",
    ),
    "pretrain": Stage(
        "hpgr.training.pretrain",
        ARTIFACTS / "pretrain",
        "Stage 1: session-based masked item modeling.",
    ),
    "finetune": Stage(
        "hpgr.training.finetune",
        ARTIFACTS / "finetune",
        "Stage 2: retrieval and ranking.",
    ),
    "evaluate": Stage(
        "hpgr.evaluation.evaluate",
        ARTIFACTS / "evaluation",
        "Judge the model beside the baselines; write the report.",
    ),
}
NEEDS_MODEL = ("pretrain", "finetune", "evaluate")  # read the section `model` too
