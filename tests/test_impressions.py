"""Shown lists in the numbers of the log: against pandas, and what may not leak into them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_log import config, contents, table_of_events, write_validated

from hpgr.data.impressions import TABLE, split_of
from hpgr.data.list_log import NO_PLACE, ListLog
from hpgr.data.log import EventLog
from hpgr.data.sessionize import sessionize
from hpgr.data.sessions import TimeCuts
from hpgr.intake.impression_screening import SHOWN_SCHEMA
from hpgr.workspace import HERE

TEMPORAL = {"split": "global-time", "min_user_events": 1, "min_item_events": 1}


def shown_rows(events, num_lists=80):
    """Lists at times of events and between them, of users and items that the log may not have."""
    rng = np.random.default_rng(1)
    times = sorted(set(events["timestamp"]))
    rows = []
    for number in range(num_lists):
        user = f"u{rng.integers(44)}"  # u40 and later have no event
        time = int(rng.choice(times) + rng.choice([0, 0, 1]))
        size = int(rng.integers(2, 6))
        taken = int(rng.integers(size))
        items = rng.choice(100, size, replace=False)  # from i80 on: in no event
        rows += [
            (f"l{number}", user, f"i{item}", time, place, int(place == taken))
            for place, item in enumerate(items)
        ]
    frame = pd.DataFrame(
        rows, columns=["impression_id", "user_id", "item_id", "timestamp", "position", "label"]
    )
    frame["row"] = rng.permutation(len(frame))  # rows of a list need not be neighbours
    return frame.sort_values("row", ignore_index=True)


def write_shown(rows):
    table = pa.Table.from_pandas(rows, SHOWN_SCHEMA, preserve_index=False)
    pq.write_table(table, HERE.validated / TABLE)


@pytest.fixture
def events(tmp_path, monkeypatch):
    """The generated log, validated, with lists beside it."""
    monkeypatch.chdir(tmp_path)
    log = table_of_events()
    write_validated(log)
    write_shown(shown_rows(log))
    return log


def found():
    return pq.read_table(HERE.sessions / TABLE).to_pandas()


def named(rows):
    """The rows with the external id of each user and item; None where the log has none."""
    users, items = (
        pq.read_table(HERE.sessions / f"{name}s.parquet").to_pandas() for name in ("user", "item")
    )
    user = rows["user"].map(users.set_index("user")["user_id"]).astype(object)
    item = rows["item"].map(items.set_index("item")["item_id"]).astype(object)
    return user.where(user.notna(), None), item.where(item.notna(), None)


def test_users_items_parts_and_ends_are_those_of_pandas(events):
    sessionize(config(**TEMPORAL))
    log, rows = EventLog.open(HERE.arrays), found()
    source = pd.DataFrame(events)
    border = {
        part: source["timestamp"][source.index.isin(_rows_of(log, source, part))].max()
        for part in (0, 1)
    }
    user, item = named(rows)
    shown = shown_rows(events).set_index(["impression_id", "item_id"])
    assert len(rows) == len(shown)
    for n, row in rows.iterrows():
        origin = shown.loc[(row["impression_id"], row["item_id"])]
        assert (row["timestamp"], row["position"], row["label"]) == tuple(
            origin[["timestamp", "position", "label"]]
        )
        known_user = origin["user_id"] in set(source["user_id"])
        assert user[n] == (origin["user_id"] if known_user else None)
        known_item = row["item_id"] in set(
            source["item_id"][source["timestamp"] < row["timestamp"]]
        )
        assert item[n] == (row["item_id"] if known_item else None)
        assert row["item"] == 1 or known_item
        late = row["timestamp"] > border[1]
        assert row["split"] == (2 if late else int(row["timestamp"] > border[0]))
        if known_user:
            own = source[source["user_id"] == origin["user_id"]]
            earlier = (own["timestamp"] < row["timestamp"]).sum()
            assert row["end"] - log.user_offsets[row["user"]] == earlier
    assert set(rows["split"]) == {0, 1, 2} and rows["user"].min() == -1


def _rows_of(log, source, part):
    """Index in `source` of the events of a part of the split, by their times."""
    times = set(np.asarray(log.timestamp)[np.asarray(log.split) == part].tolist())
    return source.index[source["timestamp"].isin(times)]


def test_lists_stand_together_by_user_time_and_position(events):
    sessionize(config(**TEMPORAL))
    rows = found()
    assert (np.diff(rows["impression"]) >= 0).all()
    assert rows.groupby("impression")["impression_id"].nunique().eq(1).all()
    assert rows["impression"].nunique() == rows["impression_id"].nunique() == 80
    keys = rows[["user", "timestamp", "impression", "position"]]
    assert keys.equals(keys.sort_values(list(keys)))


def test_events_from_the_moment_of_a_list_on_change_nothing_of_it(events):
    """Neither its history nor which of its items are known."""
    sessionize(config(**TEMPORAL))
    before, items = found(), named(found())[1]
    border = before.loc[before["split"] == 2, "timestamp"].min()
    log = EventLog.open(HERE.arrays)
    past = [_history(log, row) for row in before.itertuples()]
    late = [time >= border for time in events["timestamp"]]
    shown_late = before.loc[(before["split"] == 2) & (before["label"] == 1), "item_id"].tolist()
    events["item_id"] = [
        shown_late[n % len(shown_late)] if is_late else item
        for n, (item, is_late) in enumerate(zip(events["item_id"], late, strict=True))
    ]
    write_validated(events)
    sessionize(config(**TEMPORAL))
    after, items_after = found(), named(found())[1]
    log = EventLog.open(HERE.arrays)
    first = (before["split"] == 2) & (before["timestamp"] == border)
    assert first.any()
    same = before["timestamp"] <= border
    columns = ["impression_id", "item_id", "user", "timestamp", "position", "label", "split", "end"]
    pd.testing.assert_frame_equal(before[same][columns], after[same][columns])
    assert items[same].tolist() == items_after[same].tolist()
    for row, seen in zip(after.itertuples(), past, strict=True):
        if row.timestamp <= border:
            assert _history(log, row) == seen


def _history(log, row):
    """Items and times that a shown item's list may see."""
    if row.user < 0:
        return []
    rows = slice(int(log.user_offsets[row.user]), row.end)
    return list(zip(log.item[rows].tolist(), log.timestamp[rows].tolist(), strict=True))


def test_training_reads_the_training_and_validation_lists_of_the_table(events):
    """And no test list, no list of an unknown user."""
    sessionize(config(**TEMPORAL))
    lists, rows = ListLog.open(HERE.lists), found()
    rows = rows[(rows["user"] >= 0) & rows["split"].isin([0, 1])]
    by_list = rows.groupby("impression", sort=True)
    assert len(lists) == len(by_list) > 20
    for n, (_, own) in enumerate(by_list):
        shown = slice(*lists.offsets[n : n + 2])
        assert lists.item[shown].tolist() == own["item"].tolist()
        assert lists.label[shown].tolist() == own["label"].tolist()
        assert lists.place[shown].tolist() == (own["position"].rank(method="min") - 1).tolist()
        for name in ("user", "end", "timestamp", "split"):
            assert set(own[name]) == {getattr(lists, name)[n]}, name


def test_items_at_one_position_share_a_place_and_without_positions_none_is_known(events):
    rows = shown_rows(events)
    write_shown(rows.assign(position=rows["position"] // 2 + 7))
    sessionize(config(**TEMPORAL))
    first = ListLog.open(HERE.lists)
    assert set(first.place) == {0, 2, 4}
    write_shown(rows.assign(position=pd.array([None] * len(rows), dtype="Int64")))
    sessionize(config(**TEMPORAL))
    assert set(ListLog.open(HERE.lists).place) == {NO_PLACE}


def test_lists_that_cross_record_batches_stay_whole(events, monkeypatch):
    sessionize(config(**TEMPORAL))
    whole = contents(HERE.lists)
    monkeypatch.setattr("hpgr.data.impressions.BATCH_ROWS", 7)
    sessionize(config(**TEMPORAL))
    assert contents(HERE.lists) == whole


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (TEMPORAL, True),
        ({**TEMPORAL, "min_label_events": 10**6}, False),
        ({}, False),  # leave-one-out: no list has a part
    ],
)
def test_a_ranking_needs_enough_of_both_labels_in_the_lists(events, changes, expected):
    sessionize(config(**changes))
    assert ListLog.open(HERE.lists).can_rank == expected


def test_lists_can_rank_where_all_events_are_positive(events, capsys):
    sessionize(config(**TEMPORAL, positive_from=None))
    assert not EventLog.open(HERE.arrays).meta.can_rank
    assert "learns no ranking" not in capsys.readouterr().out
    write_shown(shown_rows(events).iloc[:0])
    sessionize(config(**TEMPORAL, positive_from=None))
    assert "learns no ranking" in capsys.readouterr().out


def test_the_split_of_a_time_is_that_of_an_event_of_the_same_second():
    cuts = TimeCuts(train_until=10, validation_until=20)
    times = np.array([9, 10, 11, 20, 21])
    assert split_of(times, cuts).tolist() == [0, 0, 1, 1, 2]
    assert split_of(times, None).tolist() == [-1] * 5


def test_counts_stand_in_the_statistics_and_in_the_terminal(events, capsys):
    sessionize(config(**TEMPORAL))
    counts = json.loads((HERE.sessions / "stats.json").read_text())["impressions"]
    rows = found()
    lists = rows.drop_duplicates("impression")
    assert counts == {
        "lists": 80,
        **{
            name: int(((lists["split"] == part) & (lists["user"] >= 0)).sum())
            for part, name in enumerate(("train", "validation", "test"))
        },
        "without_user": int((lists["user"] < 0).sum()),
        "items": len(rows),
        "unknown_items": int((rows["item"] == 1).sum()),
    }
    assert "impressions: 80 lists" in capsys.readouterr().out


def test_leave_one_out_gives_no_list_a_part(events, capsys):
    sessionize(config())
    assert set(found()["split"]) == {-1}
    assert "only sessionize.split: global-time" in capsys.readouterr().out


def test_without_impressions_the_table_is_empty_and_nothing_else_differs(events):
    sessionize(config(**TEMPORAL))
    with_lists = contents(HERE.sessions)
    write_shown(shown_rows(events).iloc[:0])
    sessionize(config(**TEMPORAL))
    without = contents(HERE.sessions)
    assert found().empty
    changed = {name for name in with_lists if with_lists[name] != without[name]}
    assert with_lists.keys() == without.keys()
    assert changed == {TABLE, "stats.json", *(n for n in without if n.startswith("lists/"))}
    assert len(ListLog.open(HERE.lists)) == 0
    (HERE.validated / TABLE).unlink()  # a log that was validated before there were impressions
    sessionize(config(**TEMPORAL))
    assert contents(HERE.sessions) == without
