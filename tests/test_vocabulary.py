"""A vocabulary that grows: old ids keep their meaning, new ones follow without gaps.

The oracle is plain Python over the rows; sessionize runs on random logs that grow at their end,
with k-core filters that let rows in which they had dropped before.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sample_log import config, contents, keep_as_base, log_of, table_of_events, write_validated

from hpgr.data import sessionize
from hpgr.data.log import FIRST_ITEM, EventLog
from hpgr.data.trained_events import SKETCH
from hpgr.runtime import UserError
from hpgr.workspace import HERE

OUT = Path("artifacts/sessions")
TABLES = {"items": ("item", "item_id"), "actions": ("action", "name")} | {
    "categories": ("category", "name")
}
FEATURES = [  # i0 and i4 are without
    {"item_id": f"i{n}", "title": f"Item {n}", "categories": [f"c{n % 3}", f"c{n}"][: n % 4]}
    for n in range(8)
]


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """An empty project folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path, table: str) -> list[str]:
    """Names in the order of their ids."""
    key, name = TABLES[table]
    frame = pq.read_table(folder / f"{table}.parquet").to_pandas().sort_values(key)
    first = FIRST_ITEM if table == "items" else 1
    assert frame[key].tolist() == list(range(first, first + len(frame)))
    return frame[name].tolist()


def k_core(events: pd.DataFrame, min_user: int, min_item: int) -> pd.DataFrame:
    while True:
        users = events.user_id.map(events.user_id.value_counts()) >= min_user
        items = events.item_id.map(events.item_id.value_counts()) >= min_item
        if (users & items).all():
            return events
        events = events[users & items]


def expected_names(events: pd.DataFrame, kept: pd.DataFrame, old: list[str], column: str):
    """Old names, then those that are kept and new, by first appearance in the whole log."""
    ordered = events.sort_values(["timestamp", "row"])[column].dropna().drop_duplicates()
    there = set(kept[column].dropna())
    return old + [name for name in ordered if name in there and name not in old]


def expected_categories(items: list[str], old: list[str]) -> list[str]:
    by_id = {row["item_id"]: row["categories"] for row in FEATURES}
    found = old.copy()
    for name in (name for item in items for name in by_id.get(item, [])):
        if name not in found:
            found.append(name)
    return found


event = st.tuples(
    st.integers(0, 4), st.integers(0, 9), st.integers(0, 30), st.sampled_from([0, 1, 5, 5])
)
later = st.tuples(
    st.integers(0, 6), st.integers(0, 12), st.integers(31, 60), st.sampled_from([0, 2, 5])
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(event, min_size=12, max_size=30), st.lists(later, max_size=25), st.integers(1, 3))
def test_old_ids_stay_and_new_ones_follow(workspace, first, second, min_item_events):
    shutil.rmtree(HERE.base, ignore_errors=True)
    cfg = config(min_user_events=3, min_item_events=min_item_events)
    old: dict[str, list[str]] = {table: [] for table in TABLES}
    for rows in (first, first + second):
        events = pd.DataFrame(log_of(rows))
        kept = k_core(events, 3, min_item_events)
        assume(len(kept) and kept.user_id.value_counts().max() >= 3)
        write_validated(log_of(rows), FEATURES)
        sessionize.sessionize(cfg)
        items = expected_names(events, kept, old["items"], "item_id")
        expected = {
            "items": items,
            "actions": expected_names(events, kept, old["actions"], "action"),
            "categories": expected_categories(items, old["categories"]),
        }
        found = {table: names(OUT, table) for table in TABLES}
        assert found == expected
        assert_events_are(kept, found)
        keep_as_base()
        old = found


def assert_events_are(kept: pd.DataFrame, found: dict[str, list[str]]) -> None:
    """The arrays hold the kept events under the ids of the tables."""
    log = EventLog.open(OUT / "arrays")
    assert log.meta.num_items == FIRST_ITEM + len(found["items"])
    assert log.meta.num_actions == 1 + len(found["actions"])
    assert log.meta.num_categories == 1 + len(found["categories"])
    assert len(log.category_offsets) == log.meta.num_items + 1
    users = pq.read_table(OUT / "users.parquet").to_pandas().set_index("user").user_id
    actions = [None, *found["actions"]]
    rows = [
        (users[user], found["items"][item - FIRST_ITEM], int(time), actions[action])
        for user, item, time, action in zip(
            log.user_of_event(), log.item, log.timestamp, log.action, strict=True
        )
    ]
    ordered = kept.sort_values(["user_id", "timestamp", "row"])
    ordered = ordered.astype(object).where(ordered.notna(), None)
    expected = ordered[["user_id", "item_id", "timestamp", "action"]]
    by_user = sorted(rows, key=lambda row: row[0])  # stable: time order stays within a user
    assert by_user == list(expected.itertuples(index=False, name=None))


def grow(workspace: Path, engine: str = "duckdb") -> tuple[list[str], list[str]]:
    """Item names of a log, and of the same log grown on top of them by `engine`."""
    events = table_of_events()
    half = {name: values[:300] for name, values in events.items()}
    write_validated(half)
    sessionize.sessionize(config())
    keep_as_base()
    write_validated(events)
    sessionize.sessionize(config(engine=engine))
    return names(HERE.base, "items"), names(OUT, "items")


def test_items_that_the_k_core_lets_in_later_come_last(workspace):
    """Without a base they would take their old place and move the others."""
    old, new = grow(workspace)
    assert new[: len(old)] == old and len(new) > len(old)
    shutil.rmtree(HERE.base)
    sessionize.sessionize(config())
    assert names(OUT, "items")[: len(old)] != old


def test_an_item_without_events_keeps_its_id_and_its_empty_row(workspace):
    grow(workspace)
    events = pd.DataFrame(table_of_events())
    events = events[events.item_id != "i0"].assign(row=lambda frame: range(len(frame)))
    old, before = names(OUT, "items"), EventLog.open(OUT / "arrays").meta
    keep_as_base()
    np.save(HERE.base / SKETCH, np.empty(0, np.uint64))  # no matter here: that the split has moved
    events = events.astype(object).where(events.notna(), None)
    write_validated(events.to_dict("list"))
    sessionize.sessionize(config())
    items = pq.read_table(OUT / "items.parquet").to_pandas().set_index("item_id")
    assert names(OUT, "items") == old
    assert items.loc["i0", "train_events"] == 0 and items.loc["i0", "title"] == "i0"
    log = EventLog.open(OUT / "arrays")
    assert log.meta.num_items == before.num_items
    assert int(items.loc["i0", "item"]) not in np.unique(log.item)


def test_a_repeat_with_a_base_gives_the_same_bytes(workspace):
    grow(workspace)
    first = contents(OUT)
    sessionize.sessionize(config())
    assert contents(OUT) == first


def test_the_base_of_another_log_is_refused(workspace):
    grow(workspace)
    events = {**table_of_events(), "item_id": [f"other{n % 50}" for n in range(600)]}
    write_validated(events)
    with pytest.raises(UserError, match=r"another log: none of its \d+ items has an event"):
        sessionize.sessionize(config())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"item": [3, 4], "item_id": ["i1", "i2"]}), "ids from 2 without gaps"),
        (pa.table({"item": [2, 3], "item_id": ["i1", "i1"]}), "one name of its own"),
        (pa.table({"item": [2, 3], "item_id": ["i1", None]}), "one name of its own"),
        (pa.table({"item": [2, 3]}), "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_damaged_base_is_named_with_its_fix(workspace, table, message):
    grow(workspace)
    path = HERE.base / "items.parquet"
    path.unlink()
    if table is not None:
        pq.write_table(table, path)
    with pytest.raises(UserError, match=rf"(?s)base/items\.parquet.*{message}.*Fill base/ again"):
        sessionize.sessionize(config())
