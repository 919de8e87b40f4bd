"""The sessionize stage on a generated log: files, arrays, statistics, errors."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_log import TESTED, config, contents, table_of_events, write_validated

from hpgr.config import Sessionize
from hpgr.data import flat_arrays, labels, session_statistics, sessionize
from hpgr.data.log import EventLog
from hpgr.runtime import UserError

OUT = Path("artifacts/sessions")


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """An empty project folder with the generated log validated."""
    monkeypatch.chdir(tmp_path)
    write_validated(table_of_events())
    return tmp_path


def frame(name: str) -> pd.DataFrame:
    return pq.read_table(OUT / f"{name}.parquet").to_pandas()


def test_tables_have_the_columns_and_types_of_the_contract(workspace):
    sessionize.sessionize(config())
    found = {
        path.stem: {field.name: str(field.type) for field in pq.read_schema(path)}
        for path in OUT.glob("*.parquet")
    }
    categories = pq.read_schema(OUT / "items.parquet").field("categories").type
    assert pa.types.is_list(categories) and pa.types.is_string(categories.value_type)
    del found["items"]["categories"]
    assert found == {
        "events": {
            **{"user": "int32", "item": "int32", "timestamp": "int64", "action": "int16"},
            **{"label": "int8", "session": "int32", "position": "int32", "split": "int8"},
        },
        "items": {
            **{"item": "int32", "item_id": "string", "title": "string"},
            "train_events": "int64",
        },
        "users": {"user": "int32", "user_id": "string"},
        "actions": {"action": "int16", "name": "string"},
        "categories": {"category": "int32", "name": "string"},
        "impressions": {
            **{"impression": "int64", "impression_id": "string", "item_id": "string"},
            **{"user": "int32", "item": "int32", "timestamp": "int64", "position": "int64"},
            **{"label": "int8", "split": "int8", "end": "int64"},
        },
    }


def test_arrays_hold_the_columns_of_the_events_table(workspace):
    sessionize.sessionize(config())
    log, events = EventLog.open(OUT / "arrays"), frame("events")
    for name in ("item", "timestamp", "action", "label", "session", "split"):
        np.testing.assert_array_equal(getattr(log, name), events[name], err_msg=name)
    np.testing.assert_array_equal(log.user_of_event(), events.user)


def test_category_arrays_hold_the_lists_of_the_items_table(workspace):
    sessionize.sessionize(config())
    log, items = EventLog.open(OUT / "arrays"), frame("items")
    names = dict(frame("categories").itertuples(index=False))
    lists = [
        [names[c] for c in log.category[begin:end]]
        for begin, end in zip(log.category_offsets, log.category_offsets[1:], strict=False)
    ]
    assert lists == [[], [], *map(list, items.categories)]
    assert any(lists)


def test_events_are_those_of_the_source(workspace):
    """Ids, times, actions and k-core against pandas, through the vocabulary."""
    sessionize.sessionize(config())
    source = pd.DataFrame(table_of_events())
    while True:
        users, items = source.user_id.value_counts(), source.item_id.value_counts()
        keep = (source.user_id.map(users) >= 3) & (source.item_id.map(items) >= 2)
        if keep.all():
            break
        source = source[keep]
    assert 0 < len(source) < 600
    events = frame("events")
    events["user_id"] = events.user.map(frame("users").set_index("user").user_id)
    events["item_id"] = events.item.map(frame("items").set_index("item").item_id)
    events["name"] = events.action.map(frame("actions").set_index("action").name)
    events["name"] = events.name.astype(object).where(events.name.notna(), None)
    source["action"] = source.action.astype(object).where(source.action.notna(), None)
    rows = ["user_id", "item_id", "timestamp"]
    found = {
        user: part[[*rows, "name"]].values.tolist() for user, part in events.groupby("user_id")
    }
    assert found == {
        user: part[[*rows, "action"]].values.tolist()
        for user, part in source.sort_values(["timestamp", "row"]).groupby("user_id")
    }


@pytest.mark.parametrize(
    ("action", "positive_from", "positive_actions", "expected"),
    [
        ("5", 4, None, True),
        ("4", 4, None, True),
        ("3.9", 4, None, False),
        ("view", 4, None, False),
        (None, 4, None, False),
        ("buy", None, ("buy",), True),
        ("view", None, ("buy",), False),
        ("view", 4, ("view",), True),
        ("nan", 4, None, False),
        ("view", None, None, True),
        (None, None, None, True),
    ],
)
def test_label_is_a_rating_or_a_word(action, positive_from, positive_actions, expected):
    settings = Sessionize(
        **{**TESTED, "positive_from": positive_from, "positive_actions": positive_actions}
    )
    assert labels.labels([action, "skip"], settings)[0] == int(expected)


def test_items_fall_back_to_their_id_and_lose_empty_and_repeated_categories(workspace):
    events = {
        **{"user_id": ["u"] * 4, "item_id": ["x", "y", "z", "x"], "timestamp": [1, 2, 3, 4]},
        **{"action": ["5"] * 4, "session_id": [None] * 4, "row": [0, 1, 2, 3]},
    }
    items = [
        {"item_id": "unseen", "title": "Unseen", "categories": ["never"]},
        {"item_id": "y", "title": None, "categories": ["q", "", None, "p", "q"]},
        {"item_id": "x", "title": "X", "categories": None},
    ]
    write_validated(events, items)
    sessionize.sessionize(config(min_item_events=1))
    assert pq.read_table(OUT / "items.parquet").to_pylist() == [
        {"item": 2, "item_id": "x", "title": "X", "categories": [], "train_events": 1},
        {"item": 3, "item_id": "y", "title": "y", "categories": ["q", "p"], "train_events": 1},
        {"item": 4, "item_id": "z", "title": "z", "categories": [], "train_events": 0},
    ]
    assert pq.read_table(OUT / "categories.parquet").to_pydict() == {
        "category": [1, 2],
        "name": ["q", "p"],
    }


def test_each_of_many_items_keeps_its_own_categories(workspace):
    own = {f"i{n}": [f"c{n % 41}", f"d{n % 7}"][: n % 3] for n in range(900)}
    count = len(own)
    events = {
        **{"user_id": ["u"] * count, "item_id": [*own], "timestamp": [*range(count)]},
        **{"action": ["5"] * count, "session_id": [None] * count, "row": [*range(count)]},
    }
    write_validated(events, [{"item_id": n, "title": n, "categories": c} for n, c in own.items()])
    sessionize.sessionize(config(min_item_events=1))
    items = frame("items")
    assert {n: [*c] for n, c in zip(items.item_id, items.categories, strict=True)} == own


def test_a_log_without_categories_and_actions_has_empty_vocabularies(workspace):
    events = {**table_of_events(), "action": [None] * 600}
    names = sorted(set(events["item_id"]))
    items = [{"item_id": name, "title": None, "categories": None} for name in names]
    write_validated(events, items)
    sessionize.sessionize(config(positive_from=None))
    log = EventLog.open(OUT / "arrays")
    assert (log.meta.num_categories, log.meta.num_actions) == (1, 1)
    assert len(log.category) == 0 and not log.action.any() and log.label.all()


def test_train_events_count_the_training_split_alone(workspace):
    sessionize.sessionize(config())
    events, items = frame("events"), frame("items").set_index("item")
    counts = events[events.split == 0].item.value_counts()
    expected = counts.reindex(items.index, fill_value=0)
    assert items.train_events.tolist() == expected.tolist()


def test_global_time_takes_its_shares_of_the_events(workspace):
    sessionize.sessionize(config(split="global-time", min_user_events=1, min_item_events=1))
    events = frame("events").sort_values("timestamp")
    ordered = np.sort(events.timestamp)
    for share, parts in ((0.1, [2]), (0.2, [1, 2])):
        border = ordered[round(600 * (1 - share)) - 1]  # the last event of the early side
        assert set(events[events.timestamp > border].split) == set(parts)
        assert not set(events[events.timestamp <= border].split) & set(parts)


def resumed(events: pd.DataFrame) -> int:
    """Number of times that a session goes on after an event of another one, by brute force."""
    total = 0
    for _, rows in events.sort_values("position").groupby("user"):
        session = rows.session.tolist()
        total += sum(
            here in session[:i] and here != session[i - 1]
            for i, here in enumerate(session)
            if i > 0
        )
    assert total > 0  # the log has such sessions
    return total


def test_statistics_equal_those_of_pandas(workspace):
    sessionize.sessionize(config(split="global-time"))
    stats, events = json.loads((OUT / "stats.json").read_text()), frame("events")
    per_user = events.user.value_counts()
    lengths = events.groupby(["user", "session"]).size()
    sessions_per_user = lengths.groupby("user").size()
    gaps = events.groupby("user").timestamp.diff().dropna()
    seen = set(events[events.split == 0].item)
    test = events[events.split == 2]
    expected = {
        "events": len(events),
        "users": events.user.nunique(),
        "items": events.item.nunique(),
        "first_timestamp": events.timestamp.min(),
        "last_timestamp": events.timestamp.max(),
        "same_timestamp_share": pytest.approx((gaps == 0).mean(), abs=1e-6),
    }
    assert {key: stats[key] for key in expected} == expected
    assert stats["events_per_user"] == {
        "min": per_user.min(),
        "median": per_user.median(),
        "p90": pytest.approx(per_user.quantile(0.9)),
        "max": per_user.max(),
    }
    assert stats["sessions"] == {
        "gap_s": 1800,
        "number": len(lengths),
        "events_mean": pytest.approx(lengths.mean(), abs=1e-4),
        "events_median": lengths.median(),
        "per_user_mean": pytest.approx(sessions_per_user.mean(), abs=1e-4),
        "per_user_median": sessions_per_user.median(),
        "users_with_several": (sessions_per_user > 1).sum(),
        "resumed": resumed(events),
    }
    assert stats["splits"]["test"] == {
        "events": len(test),
        "users": test.user.nunique(),
        "items": test.item.nunique(),
        "positive_share": pytest.approx(test.label.mean(), abs=1e-6),
        "cold_items": len(set(test.item) - seen),
        "cold_events": (~test.item.isin(seen)).sum(),
    }
    source = pd.DataFrame(table_of_events())
    assert stats["dropped"] == {
        "events": 600 - len(events),
        "users": source.user_id.nunique() - events.user.nunique(),
        "items": source.item_id.nunique() - events.item.nunique(),
    }


def test_gap_table_says_how_many_sessions_each_limit_gives(workspace):
    events = {**table_of_events(), "session_id": [None] * 600}
    write_validated(events)
    sessionize.sessionize(config(gap_s=1000))
    log = frame("events")
    gaps = log.groupby("user").timestamp.diff().dropna()
    with (OUT / "gaps.csv").open(encoding="utf-8") as stream:
        rows = [{key: int(value) for key, value in row.items()} for row in csv.DictReader(stream)]
    below = -1
    for row in rows:
        assert row["gaps"] == ((gaps > below) & (gaps <= row["gap_s"])).sum()
        assert row["sessions"] == log.user.nunique() + (gaps > row["gap_s"]).sum()
        below = row["gap_s"]
    assert sum(row["gaps"] for row in rows) == len(gaps)
    in_force = next(row for row in rows if row["gap_s"] == 1000)
    assert in_force["sessions"] == len(log.groupby(["user", "session"]))


def test_a_repeat_gives_the_same_bytes(workspace):
    sessionize.sessionize(config())
    first = contents(OUT)
    sessionize.sessionize(config())
    assert contents(OUT) == first


def test_batches_do_not_show_in_the_result(workspace, monkeypatch):
    sessionize.sessionize(config())
    whole = contents(OUT)
    monkeypatch.setattr(flat_arrays, "BATCH_ROWS", 7)
    monkeypatch.setattr(session_statistics, "BLOCK_ROWS", 13)
    expected = {name: frame(name) for name in ("events", "users")}
    sessionize.sessionize(config())
    for name, table in expected.items():
        pd.testing.assert_frame_equal(frame(name), table)
        whole.pop(f"{name}.parquet")  # row groups differ, rows do not
    assert {name: contents(OUT)[name] for name in whole} == whole


def test_nothing_but_the_output_is_left_behind(workspace):
    sessionize.sessionize(config())
    assert sorted(path.name for path in Path().iterdir()) == ["artifacts"]
    assert sorted(path.name for path in Path("artifacts").iterdir()) == ["sessions", "validated"]


def test_log_that_is_not_validated_says_what_to_run(workspace):
    shutil.rmtree("artifacts/validated")
    with pytest.raises(UserError, match=r"events\.parquet not found: run `hpgr validate`"):
        sessionize.sessionize(config())


def test_missing_column_is_named(workspace):
    path = Path("artifacts/validated/events.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["session_id"]), path)
    with pytest.raises(UserError, match="no column session_id"):
        sessionize.sessionize(config())


def test_filters_that_drop_everything_name_the_settings(workspace):
    with pytest.raises(UserError, match=r"no event is left of 600 .*min_user_events"):
        sessionize.sessionize(config(min_user_events=1000))


def test_a_failed_run_keeps_the_last_result(workspace):
    sessionize.sessionize(config())
    before = contents(OUT)
    with pytest.raises(UserError):
        sessionize.sessionize(config(min_user_events=1000))
    assert contents(OUT) == before
    assert sorted(path.name for path in Path("artifacts").iterdir()) == ["sessions", "validated"]


def test_measurements_as_actions_are_refused(workspace):
    events = {**table_of_events(), "action": [str(n / 7) for n in range(600)]}
    write_validated(events)
    with pytest.raises(UserError, match=r"distinct actions .*expected at most 250.*bin"):
        sessionize.sessionize(config(min_item_events=1))


def test_a_split_without_training_events_is_refused(workspace):
    users = [f"u{n // 2}" for n in range(600)]  # two events each: validation and test
    write_validated({**table_of_events(), "user_id": users})
    with pytest.raises(UserError, match="leaves no train event"):
        sessionize.sessionize(config(min_user_events=1, min_item_events=1))


def test_a_log_without_positives_is_reported(workspace, capsys):
    sessionize.sessionize(config(positive_from=6))
    assert (
        "events are negative: the model retrieves and learns no ranking" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("words", "positives", "warned"),
    [(["4,5", "2,0"], 300, False), (["5", "1 star"], 300, True)],
)
def test_actions_are_read_as_numbers_or_said_to_be_none(
    workspace, capsys, words, positives, warned
):
    actions = [words[n % 2] for n in range(600)]
    write_validated({**table_of_events(), "action": actions})
    sessionize.sessionize(config(min_user_events=1, min_item_events=1, split="global-time"))
    assert frame("events").label.sum() == positives
    message = "actions that are no numbers: 300 of 600 events with an action (50.0%) have '1 star'"
    assert (message in capsys.readouterr().out) is warned
