"""Both training stages on a small generated log, for tests; needs no more than training itself."""

import csv
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml
from evaluation_log import random_log, write_arrays

from hpgr.model.zoo import section_class

ROOT = Path(__file__).parents[1]
STAGES = ("pretrain", "finetune")


def log_with_categories(seed=0, *, num_users=60):
    """A random log whose items have none, one or two of three categories."""
    log = random_log(seed, num_users=num_users)
    count = np.arange(log.meta.num_items) % 3
    category = np.arange(count.sum()) % 3 + 1
    return replace(
        log,
        meta=replace(log.meta, num_categories=4),
        category_offsets=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        category=category.astype(np.int32),
    )


def write_project(folder, log=None):
    """Input of the stages: the arrays of a sessionized log."""
    write_arrays(log or log_with_categories(), folder / "artifacts" / "sessions" / "arrays")


def parameters(**changes):
    """params.yaml with the profile smoke as plain objects; `changes` by `section__key`."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name in ("quick", "smoke"):
        for section, values in yaml.safe_load((ROOT / f"profiles/{name}.yaml").read_text()).items():
            raw[section] |= values
    dotted = {
        "model.tile": 16, "model.max_history": 20, "pretrain.batch_tokens": 128,
        "finetune.batch_tokens": 128, "finetune.validation_queries": 20,
        "finetune.device": "cpu", "pretrain.device": "cpu",
    }  # fmt: skip
    dotted |= {name.replace("__", "."): value for name, value in changes.items()}
    for name, value in dotted.items():
        section, key = name.split(".")
        raw[section][key] = value
    raw["model"].setdefault("cross", "fold_in")
    own = fields(section_class(raw["model"]["name"]))  # of the keys, those that its network has
    raw["model"] = {field.name: raw["model"][field.name] for field in own}
    sections = {k: SimpleNamespace(**v) for k, v in raw.items() if isinstance(v, dict)}
    return SimpleNamespace(**sections)


def both(value, *keys):
    """Changes for `parameters` that set `keys` in the sections of both stages."""
    return {f"{stage}__{key}": value for stage in STAGES for key in keys}


def train_both(cfg):
    """Run both stages in the working folder and return each one's mean losses of its last epoch."""
    from hpgr.training.finetune import finetune
    from hpgr.training.pretrain import pretrain

    pretrain(cfg)
    finetune(cfg)
    return {stage: last_row(stage) for stage in STAGES}


def last_row(stage, folder=Path()):
    """The last row of a stage's curves; empty where the stage had nothing to train."""
    with (folder / "artifacts" / stage / "curves.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return {k: float(v) for k, v in rows[-1].items()} if rows else {}
