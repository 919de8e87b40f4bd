"""Increments of a log: read after the base, known by content, placed whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from own_log import START, config, good_rows, write_csv

from hpgr.intake import increments
from hpgr.intake.doctor import doctor
from hpgr.intake.increments import FOLDER
from hpgr.intake.raw_log import read_raw
from hpgr.intake.validate import validate
from hpgr.runtime import UserError, read_json
from hpgr.workspace import HERE

COLUMNS = ["user_id", "item_id", "timestamp", "row", "part", "line"]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log of ten events with tables of items and users, in a project folder of its own."""
    monkeypatch.chdir(tmp_path)
    folder = Path("data/shop")
    folder.mkdir(parents=True)
    write_csv(folder / "log.csv", good_rows(10))
    write_csv(folder / "items.csv", [(f"i{n}", f"Item {n}") for n in range(10)], "item_id,title")
    write_csv(folder / "users.csv", [("u0", "30")], "user_id,age")
    return folder


def tables(folder: Path, **data):
    return config(folder, items="items.csv", users="users.csv", **data)


def add(log: Path, name: str, rows: list, items: list | None = None) -> Path:
    folder = log / FOLDER / name
    folder.mkdir(parents=True)
    write_csv(folder / "log.csv", rows)
    if items is not None:
        write_csv(folder / "items.csv", items, "item_id,title")
    return folder


def test_events_of_base_and_increments_follow_each_other(log):
    add(log, "0002-bbbbbbbbbbbb", [("c", "i2", START + 2)])
    add(log, "0001-aaaaaaaaaaaa", [("a", "i1", START), ("b", "i1", START + 1)])
    events = pd.concat(read_raw(tables(log).data, 4).events)
    expected = [(*row, n, 0, n + 2) for n, row in enumerate(good_rows(10))] + [
        ("a", "i1", START, 10, 1, 2),
        ("b", "i1", START + 1, 11, 1, 3),
        ("c", "i2", START + 2, 12, 2, 2),
    ]
    found = events[COLUMNS].astype({"timestamp": "int64"})
    assert list(found.itertuples(index=False, name=None)) == expected


def test_order_is_by_number_not_by_alphabet(log):
    for number in (10000, 9999):
        add(log, f"{number}-aaaaaaaaaaaa", [(str(number), "i1", START)])
    events = pd.concat(read_raw(tables(log).data, 100).events)
    assert events["user_id"].tolist()[-2:] == ["9999", "10000"]


def test_a_later_row_replaces_the_features_of_its_id(log):
    add(log, "0001-aaaaaaaaaaaa", [("a", "new", START)], [("i3", "Renamed"), ("new", "New")])
    items = read_raw(tables(log).data, 100).items.set_index("item_id")
    expected = {**{f"i{n}": f"Item {n}" for n in range(10)}, "i3": "Renamed", "new": "New"}
    assert items["title"].to_dict() == expected


def test_an_id_that_one_file_repeats_stays_repeated(log):
    add(log, "0001-aaaaaaaaaaaa", [("a", "x", START)], [("x", "1"), ("x", "2")])
    with pytest.raises(UserError, match="item_id occurs more than once: found 'x'"):
        validate(tables(log))


def test_overlap_of_batches_is_left_out_and_is_not_bad(log):
    rows = [*good_rows(10)[8:], ("new", "i1", START + 10**4)]
    add(log, "0001-aaaaaaaaaaaa", rows)
    validate(tables(log, limits={"max_bad_share": 0.0}))
    summary = read_json(HERE.validated / "summary.json")
    assert {key: summary[key] for key in ("rows", "accepted", "quarantined", "repeated")} == {
        **{"rows": 13, "accepted": 11, "quarantined": 0, "repeated": 2}
    }
    quarantine = pd.read_parquet(HERE.validated / "quarantine.parquet")
    assert quarantine[["file", "line", "reason"]].values.tolist() == [
        [f"{FOLDER}/0001-aaaaaaaaaaaa/log.csv", line, "event of an earlier batch"]
        for line in (2, 3)
    ]


def test_the_doctor_names_the_increment_and_its_line(log):
    folder = add(log, "0001-aaaaaaaaaaaa", [("a", "i1", START), ("b", "i1", "yesterday")])
    found = doctor(log / "log.csv", tables(log))
    (problem,) = [problem for problem in found if problem.line is not None]
    assert (problem.file, problem.line) == (folder / "log.csv", 3)


@pytest.mark.parametrize("name", ["notes", "0001", "1-aaaaaaaaaaaa", "0001-xyz"])
def test_something_else_among_the_increments_is_named(log, name):
    (log / FOLDER / name).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{name}: expected only folders named NNNN-DIGEST"):
        read_raw(tables(log).data, 100)


def test_an_increment_without_events_is_named(log):
    (log / FOLDER / "0001-aaaaaaaaaaaa").mkdir(parents=True)
    with pytest.raises(UserError, match=r"0001-aaaaaaaaaaaa/log\.csv not found"):
        read_raw(tables(log).data, 100)


def test_a_batch_is_known_by_its_content(log, tmp_path):
    files = {"log.csv": write_csv(tmp_path / "b.csv", good_rows(3))}
    content = increments.digest(files)
    assert increments.find(log, content) is None
    name = increments.next_name(log, content)
    assert name == f"0001-{content}"
    folder = increments.place(log, name, files)
    again = {"log.csv": write_csv(tmp_path / "copy.csv", good_rows(3))}
    assert increments.find(log, increments.digest(again)) == folder
    changed = {"log.csv": write_csv(tmp_path / "more.csv", good_rows(4))}
    assert increments.find(log, increments.digest(changed)) is None
    assert increments.next_name(log, increments.digest(changed)).startswith("0002-")


def test_a_copy_that_fails_leaves_nothing(log, tmp_path):
    files = {"log.csv": write_csv(tmp_path / "b.csv", good_rows(3)), "items.csv": tmp_path / "gone"}
    with pytest.raises(FileNotFoundError):
        increments.place(log, "0001-aaaaaaaaaaaa", files)
    assert list((log / FOLDER).iterdir()) == []


def test_removal_takes_an_interrupted_copy_along(log):
    add(log, "0001-aaaaaaaaaaaa", good_rows(1))
    (log / FOLDER / ".0002-bbbbbbbbbbbb.x1y2").mkdir()
    increments.remove(log, "0002-bbbbbbbbbbbb")
    assert [path.name for path in (log / FOLDER).iterdir()] == ["0001-aaaaaaaaaaaa"]
    increments.remove(log, "0001-aaaaaaaaaaaa")
    assert not (log / FOLDER).exists()
