"""A small log as the validate stage leaves it, and the configuration that the tests use."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from hpgr.config import Config, resolve
from hpgr.data import sessionize
from hpgr.data.trained_events import SKETCH
from hpgr.runtime import write_json
from hpgr.workspace import HERE

PARAMS = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text(encoding="utf-8"))
TESTED = {
    **{"engine": "duckdb", "gap_s": 1800, "min_user_events": 3, "min_item_events": 2},
    **{"split": "leave-one-out", "validation_share": 0.1, "test_share": 0.1},
    **{"positive_from": 4, "positive_actions": None},
    **{"min_label_events": 1, "min_label_share": 0.0},
}


def config(**changes) -> Config:
    return resolve({**PARAMS, "sessionize": {**TESTED, **changes}})


def table_of_events(num_events: int = 600) -> dict[str, list]:
    """A log with ties of time, rare items and users, missing actions, and some own sessions."""
    rng = np.random.default_rng(0)
    user = (40 * rng.random(num_events) ** 2).astype(int)
    return {
        "user_id": [f"u{u}" for u in user],
        "item_id": [f"i{i}" for i in (80 * rng.random(num_events) ** 3).astype(int)],
        "timestamp": (1_000_000_000 + 300 * rng.integers(0, 900, num_events)).tolist(),
        "action": [[None, "3", "4", "5", "view"][a] for a in rng.integers(0, 5, num_events)],
        # Of some users, interleaved, and with gaps of their own.
        "session_id": [
            f"s{row % 3}" if u % 7 == 0 and row % 5 else None for row, u in enumerate(user)
        ],
        "row": list(range(num_events)),
    }


def write_validated(events: dict[str, list], items: list[dict] | None = None) -> None:
    folder = Path("artifacts/validated")
    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(
        {
            **{"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64()},
            **{"action": pa.string(), "session_id": pa.string(), "row": pa.int64()},
        }
    )
    pq.write_table(pa.table(events, schema), folder / "events.parquet")
    if items is None:
        names = ["i7", *sorted(set(events["item_id"]) - {"i1", "i7"})]  # i1 has no features
        items = [
            {"item_id": name, "title": f"Title {name}", "categories": ["b", "a"][: n % 3]}
            for n, name in enumerate(names)
        ]
    pq.write_table(pa.Table.from_pylist(items, sessionize.ITEMS_SCHEMA), folder / "items.parquet")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def keep_as_base() -> None:
    """The vocabulary of the last run becomes what a model below base/ knows."""
    HERE.base.mkdir(exist_ok=True)
    for table in ("items", "actions", "categories"):
        shutil.copyfile(HERE.sessions / f"{table}.parquet", HERE.base / f"{table}.parquet")
    shutil.copyfile(HERE.sessions / SKETCH, HERE.base / SKETCH)
    write_json(HERE.base / "base.json", {"version": 1})


def log_of(rows: list[tuple[int, int, int, int]]) -> dict[str, list]:
    """Columns of a log from user, item, time and action of each event, repeated ones once."""
    rows = list(dict.fromkeys(rows))
    return {
        "user_id": [f"u{user}" for user, *_ in rows],
        "item_id": [f"i{item}" for _, item, *_ in rows],
        "timestamp": [time for _, _, time, _ in rows],
        "action": [None if action == 0 else str(action) for *_, action in rows],
        "session_id": [None] * len(rows),
        "row": list(range(len(rows))),
    }
