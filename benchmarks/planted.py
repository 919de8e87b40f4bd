"""Planted truth: logs whose rule is known, and what each network makes of them.

    python benchmarks/planted.py

- opinions: a user likes an item exactly if the one earlier item of its category, more than 40
  events before, was liked. Every user has opinions of their own, at random, and there are far more
  categories than item factors, so no model of few factors knows them. Exactly one event decides.
- sessions: the next item is the one that came most often in this session, which has 4 or 20 events.
  Neither a few nor many newest events show it: in a long session the newest four are mostly noise,
  and before a short one lies another's item. Gaps inside a session and pauses between sessions are
  in one bucket of HSTU's times (1,372 to 1,853 s), so only the cut of sessions tells them apart.

Each network gets the same steps. The last line is a JSON object of the figures, on validation.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads OpenMP

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from hpgr.config import Config, resolve  # noqa: E402
from hpgr.data.histories import histories  # noqa: E402
from hpgr.data.log import EventLog  # noqa: E402
from hpgr.data.sessionize import ITEMS_SCHEMA, sessionize  # noqa: E402
from hpgr.data.sessions import EVENTS_SCHEMA  # noqa: E402
from hpgr.model.attention.select import intervened  # noqa: E402
from hpgr.model.scoring import Scorer  # noqa: E402
from hpgr.params_file import read_params  # noqa: E402
from hpgr.training.finetune import finetune  # noqa: E402
from hpgr.training.pretrain import pretrain  # noqa: E402
from hpgr.training.validation import Validation  # noqa: E402
from hpgr.workspace import Workspace  # noqa: E402

START, DAY = 1_600_000_000, 86_400
LIKED, DISLIKED = "5", "1"
HSTU_KEYS = (
    *("name", "dim", "max_history", "num_blocks", "num_heads", "dropout", "position_bias"),
    *("time_bias", "tile", "readout", "factors"),
)
COMMON = {
    **{"model.dim": 16, "model.num_blocks": 1, "model.max_history": 128},
    **{"pretrain.max_minutes": None, "pretrain.batch_tokens": 1024, "pretrain.device": "cpu"},
    **{"finetune.max_minutes": None, "finetune.batch_tokens": 1024, "finetune.device": "cpu"},
}
OPINIONS = {
    **{"sessionize.split": "global-time", "sessionize.validation_share": 0.04},
    **{"sessionize.test_share": 0.02},
    **{"model.factors": 8, "model.num_anchors": 4, "model.sessions": False},
    **{"pretrain.steps": 20, "finetune.steps": 120, "finetune.validate_steps": 60},
    **{"finetune.monitor": "validation_auc", "finetune.ranking_weight": 3.0},
    **{"finetune.num_candidates": 24, "finetune.validation_events": 5000},
}
SESSIONS = {
    **{"model.dim": 32, "model.dropout": 0.0, "model.preference": False, "model.readout": False},
    **{"pretrain.steps": 60, "pretrain.learning_rate": 0.004, "pretrain.start_length": 0.1},
    **{"finetune.steps": 240, "finetune.validate_steps": 80, "finetune.learning_rate": 0.004},
    **{"finetune.inherited_scale": 1.0, "finetune.ranking_weight": 0.0},
}


class Planted(NamedTuple):
    """A log: user, item, seconds and action of each event, and the categories of each item."""

    events: list[tuple[str, str, int, str]]
    categories: dict[str, list[str]]


def opinions(seed: int = 0, *, num_users: int = 400, num_kinds: int = 300) -> Planted:
    """Plant one old event that decides if a candidate is liked.

    Of 16 kinds of items each user meets one item early and another late, with the same opinion,
    and 42 items of no kind between, with opinions at random. All users go through these three
    months together.
    """
    random = np.random.default_rng(seed)
    kinds, between, others, per_kind = 16, 42, 60, 3
    events = []
    for user in range(num_users):
        own = random.permutation(num_kinds)[:kinds]
        liked = random.random(kinds) < 0.5
        pair = np.stack([random.permutation(per_kind)[:2] for _ in range(kinds)])
        for month, count in enumerate((kinds, between, kinds)):
            seconds = np.sort(random.choice(30 * DAY, count, replace=False)) + 30 * DAY * month
            for time, k in zip((START + seconds).tolist(), random.permutation(count), strict=True):
                item, likes = f"other-{random.integers(others)}", random.random() < 0.5
                if month != 1:
                    item, likes = f"kind{own[k]}-{pair[k, month // 2]}", liked[k]
                events.append((f"u{user}", item, time, LIKED if likes else DISLIKED))
    categories = {f"kind{k}-{n}": [f"kind{k}"] for k in range(num_kinds) for n in range(per_kind)}
    return Planted(events, categories | {f"other-{n}": [] for n in range(others)})


def sessions(seed: int = 0, *, num_users: int = 300, num_items: int = 200) -> Planted:
    """Plant sessions of one item among noise, which alone says what follows.

    The item has about a third of the 4 or 20 events of a session, in any order. A user's fifth and
    last session goes on with it twice more: once for validation and once for test.
    """
    random = np.random.default_rng(seed)
    events, per_user = [], 5
    for user in range(num_users):
        time = START + int(random.integers(30 * DAY))
        for session in range(per_user):
            length = int(random.choice([4, 20]))
            own, count = int(random.integers(num_items)), max(2, round(0.35 * length))
            noise = own + 1 + random.permutation(num_items - 1)[: length - count]
            items = random.permutation([own] * count + (noise % num_items).tolist()).tolist()
            items += [own, own] if session == per_user - 1 else []
            for place, item in enumerate(items):
                time += int(random.integers(1400, 1796) if place else random.integers(1805, 1851))
                events.append((f"u{user}", f"item{item}", time, LIKED))
    return Planted(events, {f"item{n}": [] for n in range(num_items)})


def write(planted: Planted, cfg: Config, root: Path) -> Workspace:
    """Write the log below `root` as the stage validate does, and sessionize it."""
    workspace = Workspace(root)
    workspace.validated.mkdir(parents=True)
    user, item, time, action = zip(*planted.events, strict=True)
    columns = [user, item, time, action, [None] * len(user), range(len(user))]
    types = {"string": pa.string(), "int64": pa.int64()}
    schema = pa.schema([(name, types[kind]) for name, kind in EVENTS_SCHEMA.items()])
    table = pa.table([pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)], schema)
    pq.write_table(table, workspace.validated / "events.parquet")
    names, lists = [*planted.categories], [*planted.categories.values()]
    pq.write_table(
        pa.table([names, names, lists], ITEMS_SCHEMA), workspace.validated / "items.parquet"
    )
    sessionize(cfg, workspace)
    return workspace


def settings(*changes: dict[str, Any]) -> Config:
    """params.yaml with `section.key` values of its own, the later ones winning."""
    raw = read_params(ROOT / "params.yaml")
    for name, value in {k: v for part in (COMMON, *changes) for k, v in part.items()}.items():
        section, key = name.split(".")
        raw[section][key] = value
    if raw["model"]["name"] == "hstu":
        raw["model"] = {key: raw["model"][key] for key in HSTU_KEYS}
    return resolve(raw)


def train(cfg: Config, workspace: Workspace) -> tuple[Scorer, Validation]:
    """Train both stages, and return the network and all validation events."""
    pretrain(cfg, workspace)
    finetune(cfg, workspace)
    log = EventLog.open(workspace.arrays)
    every = 1 << 40
    validation = Validation(
        log,
        max_history=cfg.model.max_history,
        num_queries=every,
        num_labelled=every if cfg.finetune.ranking_weight > 0 else 0,
        seed=0,
    )
    return Scorer.load(workspace.finetuned), validation


def recall(scorer: Scorer, validation: Validation) -> float:
    """Share of validation events that have the one earlier event of their category as an anchor."""
    log, rows = validation.log, validation.rows
    end, time = log.second_start()[rows], log.timestamp[rows]
    past = histories(log, validation.user, end, time, scorer.max_history)
    item = log.item[rows]
    place, _ = scorer.explain(past, np.arange(len(rows) + 1), item)
    kind = np.full(log.meta.num_items, -1)
    kind[np.diff(log.category_offsets) > 0] = log.category
    chosen = kind[past.item[past.offsets[:-1, None] + place.clip(0)]]
    return float(((chosen == kind[item][:, None]) & (place >= 0)).any(1).mean())


def area(scorer: Scorer, validation: Validation, *, anchors: str = "chosen") -> float:
    """AUC of the validation events with the anchors as trained, at random or none."""
    torch.manual_seed(0)
    with intervened(scorer.model, anchors):
        return validation(scorer.model, scorer.device)["validation_auc"]


def opinion_figures(root: Path) -> dict[str, float]:
    """Recall of the planted event among the anchors, and AUC of networks with and without them."""
    workspace = write(opinions(), settings(OPINIONS), root)
    trained = train(settings(OPINIONS), workspace)
    found = {"planted_recall": recall(*trained), "planted_auc": area(*trained)}
    for mode in ("random", "none"):
        found[f"planted_auc_{mode}_anchors"] = area(*trained, anchors=mode)
    for name, change in (
        ("hstu", {"model.name": "hstu", "model.readout": False}),
        ("without_readout", {"model.readout": False}),
        ("without_mask", {"model.preference": False}),
    ):
        found[f"planted_auc_{name}"] = area(*train(settings(OPINIONS, change), workspace))
    return found


def session_figures(root: Path) -> dict[str, float]:
    """NDCG@10 and HR@10 of networks with and without the session module."""
    workspace = write(sessions(), settings(SESSIONS), root)
    found = {}
    for name, change in (
        ("with_module", {}),
        ("without_module", {"model.sessions": False}),
        ("hstu", {"model.name": "hstu"}),
    ):
        scorer, validation = train(settings(SESSIONS, change), workspace)
        for metric, value in validation(scorer.model, scorer.device).items():
            found[f"planted_sessions_{name}_{metric.removeprefix('validation_')}"] = value
    return found


def figures() -> dict[str, float]:
    """All figures, of networks trained on the spot with one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = opinion_figures(Path(folder) / "opinions")
        found |= session_figures(Path(folder) / "sessions")
    return {name: round(value, 4) for name, value in found.items()}


if __name__ == "__main__":
    print(json.dumps(figures()))
