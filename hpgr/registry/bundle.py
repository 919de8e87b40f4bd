"""The bundle: one folder with everything that scoring needs.

    BUNDLE/model/       model.safetensors, config.json (of the finetune stage)
    BUNDLE/items.parquet, actions.parquet, categories.parquet
                        the vocabulary: external id, index and title
    BUNDLE/trained.npy  sketch of its training events (`hpgr.data.trained_events`)
    BUNDLE/serving.json `Serving` below

Reads `artifacts/finetune`, `artifacts/sessions` and `artifacts/evaluation/rules.json`. The registry
ships a bundle with every model version; `hpgr.serving.recommender` reads it.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpgr.config import Config
from hpgr.data.log import Meta
from hpgr.data.repeats import removes_history
from hpgr.data.trained_events import SKETCH
from hpgr.runtime import UserError, read_json, sha256_file, write_json
from hpgr.workspace import HERE, Workspace

MODEL_FILES = ("model.safetensors", "config.json")
TABLES = ("items.parquet", "actions.parquet", "categories.parquet")


@dataclass(frozen=True)
class Serving:
    """Settings for answering a request, as the model was trained and evaluated.

    `gap_s` is in seconds, `max_history` in events, `retrieve` in items.
    """

    gap_s: int
    max_history: int
    retrieve: int
    remove_history: bool
    ranked: bool  # the ranking head was trained


def write_bundle(cfg: Config, target: Path, workspace: Workspace = HERE) -> Path:
    """Write the bundle of the workspace's artifacts into the empty or new folder `target`.

    Its settings are those of training and evaluation, even if params.yaml has changed since. Only
    a model that was never evaluated takes them from params.yaml and the log.

    Raises:
        UserError: a stage's output is missing, or the model was trained on another log.
    """
    (target / "model").mkdir(parents=True)
    for source, goal in _files(workspace).items():
        if not source.is_file():
            raise UserError(f"{source} not found: run `dvc repro` (or the stage that writes it)")
        shutil.copyfile(source, target / goal)
    trained = read_json(workspace.finetuned / "config.json")
    log = read_json(workspace.arrays / "meta.json")
    for name, size in trained["catalogue"].items():
        if log[name] != size:
            raise UserError(
                f"the model of {workspace.finetuned} was trained on another log than "
                f"{workspace.sessions} holds ({name} is {size}, now {log[name]}): run `dvc repro`"
            )
    seen = removes_history(Meta(**log).repeat_share, cfg.evaluate)
    judged: dict[str, Any] = {"retrieve": cfg.evaluate.retrieve, "remove_history": seen}
    if (rules := workspace.evaluation / "rules.json").is_file():
        judged = read_json(rules)
    serving = Serving(
        gap_s=log["gap_s"],
        max_history=trained["model"]["max_history"],
        retrieve=judged["retrieve"],
        remove_history=judged["remove_history"],
        ranked=trained["ranking"],
    )
    write_json(target / "serving.json", asdict(serving))
    return target


def content_hashes(bundle: Path) -> dict[str, str]:
    """Return the sha256 of every file by its path inside the bundle, sorted."""
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    return {path.relative_to(bundle).as_posix(): sha256_file(path) for path in files}


def _files(workspace: Workspace) -> dict[Path, Path]:
    model = {workspace.finetuned / name: Path("model") / name for name in MODEL_FILES}
    return model | {workspace.sessions / name: Path(name) for name in (*TABLES, SKETCH)}
