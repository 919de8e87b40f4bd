"""Files of items and users: any column, each by its own contract; oracles spelled out by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_log import START, config, good_rows, write_csv

from hpgr.intake.doctor import doctor
from hpgr.intake.expectations import Expectations
from hpgr.intake.log_notes import notes_on_spelling
from hpgr.intake.raw_log import read_raw
from hpgr.intake.validate import validate
from hpgr.runtime import UserError, read_json
from hpgr.workspace import HERE

STRUCT = pa.array([{"a": n} for n in range(7)])
TWICE = pa.StructArray.from_arrays([pa.array(range(7))] * 2, names=["a", "a"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project folder of a run, with a log of 60 events in `raw`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Expectations, "write_docs", lambda *_, **__: None)
    (tmp_path / "raw").mkdir()
    write_csv(Path("raw/log.csv"), good_rows(60))
    return Path("raw")


def users_with(folder: Path, **columns: pa.Array) -> dict[str, str]:
    table = {"user_id": [f"u{n}" for n in range(7)], **columns}
    pq.write_table(pa.table(table), folder / "users.parquet")
    return {"users": "users.parquet"}


COLUMNS = {
    "lists": (pa.array([[0.1, 0.2]] * 7), "[0.1, 0.2]"),
    "fixed": (pa.array([[0.1, 0.2]] * 7, pa.list_(pa.float32(), 2)), "[0.1, 0.2]"),
    "some": (pa.array([["a"], *[None] * 6]), '["a"]'),
    "struct": (STRUCT, '{"a": 0}'),
    "map": (pa.array([[("k", 1)]] * 7, pa.map_(pa.string(), pa.int8())), '{"k": 1}'),
    "bytes": (pa.array([b"\xff\x01"] * 7), "ff01"),
    "bool": (pa.array([True] * 7), "true"),
    "null": (pa.nulls(7), None),
    "dictionary": (pa.array(["x"] * 7).dictionary_encode(), "x"),
}


def test_users_keep_columns_of_any_type(folder):
    cfg = config(folder, **users_with(folder, **{name: c for name, (c, _) in COLUMNS.items()}))
    validate(cfg)
    users = pq.read_table(HERE.validated / "users.parquet").to_pydict()
    assert users.pop("user_id") == [f"u{n}" for n in range(7)]
    assert {name: values[0] for name, values in users.items()} == {
        name: first for name, (_, first) in COLUMNS.items()
    }
    assert not any(p.serious for p in doctor(folder, cfg))


def test_a_column_that_cannot_be_read_is_left_out_with_a_note(folder):
    cfg = config(folder, **users_with(folder, odd=TWICE))
    validate(cfg)
    assert pd.read_parquet(HERE.validated / "users.parquet").columns.tolist() == ["user_id"]
    (message,) = read_json(HERE.validated / "summary.json")["notes"]
    assert "users.parquet, odd" in message and "left out" in message
    assert [str(p) for p in doctor(folder, cfg)] == [message]


@pytest.mark.parametrize("name", ["user_id", "USER_ID", "a.b", "q\"uo'te", "", "title", "item_id"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_mapped_key_wins_whatever_else_a_column_is_called(folder, name, suffix):
    write_csv(folder / "log.csv", good_rows(60), "customer,item_id,timestamp")
    table = pd.DataFrame({"customer": [f"u{n}" for n in range(7)], name: range(90, 97)})
    if suffix == "csv":
        table.to_csv(folder / "users.csv", index=False)
    else:
        table.to_parquet(folder / "users.parquet")
    columns = {"user_id": "customer"}
    raw = read_raw(config(folder, users=f"users.{suffix}", columns=columns).data, 1000)
    assert raw.users["user_id"].tolist() == [f"u{n}" for n in range(7)]
    assert raw.users.iloc[:, 1].tolist() == [str(n) for n in range(90, 97)]


def test_users_are_found_by_the_mapped_key_beside_a_column_called_user_id(folder):
    write_csv(folder / "log.csv", good_rows(60), "customer,item_id,timestamp")
    users = [(f"u{n}", n, n + 1) for n in range(7)]
    write_csv(folder / "users.csv", users, "customer,USER_ID,user_id")
    validate(config(folder, users="users.csv", columns={"user_id": "customer"}))
    assert read_json(HERE.validated / "summary.json")["users_without_features"] == 0


def test_another_column_called_user_id_is_noted(folder):
    write_csv(folder / "log.csv", good_rows(60), "customer,item_id,timestamp")
    write_csv(folder / "users.csv", [("u0", 90)], "customer,user_id")
    raw = read_raw(config(folder, users="users.csv", columns={"user_id": "customer"}).data, 1000)
    (note,) = raw.notes
    assert (note.file, note.column, note.serious) == (folder / "users.csv", "user_id", False)


@pytest.mark.parametrize("title", [STRUCT, pa.array([["a", "b"]] * 7), pa.array([b"\xff"] * 7)])
def test_titles_of_any_type_are_kept_as_text(folder, title):
    table = pa.table({"item_id": [f"i{n}" for n in range(7)], "title": title})
    pq.write_table(table, folder / "items.parquet")
    raw = read_raw(config(folder, items="items.parquet").data, 1000)
    assert raw.items["title"].map(type).eq(str).all()
    assert [note.column for note in raw.notes] == ["title"]


@pytest.mark.parametrize("key", ["user_id", "item_id"])
@pytest.mark.parametrize("values", [STRUCT, pa.array([[1]] * 7), pa.array([b"\xff"] * 7)])
def test_an_id_that_is_no_plain_value_is_refused_in_words(folder, key, values):
    role = key.removesuffix("_id") + "s"
    columns = {key: values, "title": ["x"] * 7}
    pq.write_table(pa.table(columns), folder / f"{role}.parquet")
    cfg = config(folder, **{role: f"{role}.parquet"})
    with pytest.raises(UserError, match=rf"{role}\.parquet: column '{key}' has type"):
        read_raw(cfg.data, 1000)


@pytest.mark.parametrize("kind", ["log", "items"])
def test_ids_whose_last_digits_a_float_lost_are_refused(folder, kind):
    ids = pa.array([1234567890123456789.0 + 1000 * n for n in range(7)])
    table = {"user_id": ["u"] * 7, "item_id": ids, "timestamp": [START] * 7, "title": ["x"] * 7}
    pq.write_table(pa.table(table), folder / f"{kind}.parquet")
    name = "interactions" if kind == "log" else "items"
    with pytest.raises(UserError, match=rf"{kind}\.parquet: column 'item_id' .* 15 digits"):
        list(read_raw(config(folder, **{name: f"{kind}.parquet"}).data, 1000).events)


@pytest.mark.parametrize(
    "spoiled", ["1234567890123456768.0", "1.2345678901234568e+18", "1.23457E+12"]
)
@pytest.mark.parametrize("kind", ["log", "items"])
def test_ids_in_text_that_a_float_spoiled_are_refused(folder, kind, spoiled):
    ids = [spoiled, *range(8)]
    rows = [("u", one, START + n) for n, one in enumerate(ids)]
    write_csv(folder / "log.csv", rows if kind == "log" else good_rows(5))
    write_csv(folder / "items.csv", [(one, "x") for one in ids], "item_id,title")
    with pytest.raises(UserError, match=rf"{kind}\.csv: item_id holds {re.escape(spoiled)}: "):
        validate(config(folder, items="items.csv" if kind == "items" else None))


@pytest.mark.parametrize(
    ("log", "items"), [("{}.0", "{}"), ("{}", "{}.0"), ("{}.0", "{}.0"), ("{}", "{}")]
)
def test_whole_numbers_match_with_and_without_their_point(folder, log, items):
    write_csv(folder / "log.csv", [("u", log.format(n), START + n) for n in range(9)])
    write_csv(folder / "items.csv", [(items.format(n), "x") for n in range(9)], "item_id,title")
    cfg = config(folder, items="items.csv")
    validate(cfg)
    events = pd.read_parquet(HERE.validated / "events.parquet")
    assert events["item_id"].tolist() == list("012345678")


@pytest.mark.parametrize(
    ("log", "items", "to_change"),
    [
        ("{:03}", "{}", "items.csv"),
        ("{}", "{:03}", "log.csv"),
        ("x{}", "X{}", "items.csv"),
        ("x{} ", "x{}", "log.csv"),
    ],
)
def test_items_in_another_spelling_name_the_file_to_change(log, items, to_change):
    known = pd.Index([items.format(n) for n in range(9)])
    (note,) = notes_on_spelling([log.format(7)], known, Path("log.csv"), Path("items.csv"))
    assert note.file.name == to_change
    assert f"export the ids of {to_change} again" in note.fix


def test_items_in_another_spelling_are_noted_beside_the_refusal(folder, caplog):
    write_csv(folder / "log.csv", [("u", f"{n:03}", START + n) for n in range(9)])
    write_csv(folder / "items.csv", [(n, "x") for n in range(9)], "item_id,title")
    cfg = config(folder, items="items.csv")
    with pytest.raises(UserError):
        validate(cfg)
    assert "'000' in raw/log.csv and '0' in raw/items.csv" in caplog.text
    assert "ids in another spelling" in {p.kind for p in doctor(folder, cfg)}


@pytest.fixture
def nested(folder: Path) -> Path:
    """A log whose files lie in folders of their own."""
    for name in ("log", "meta"):
        (folder / name).mkdir()
    write_csv(folder / "log/events.csv", good_rows(60))
    write_csv(folder / "meta/items.csv", [(f"i{n}", "x") for n in range(11)], "item_id,title")
    write_csv(folder / "meta/users.csv", [(f"u{n}", 30) for n in range(7)], "user_id,age")
    return folder


NESTED = {"interactions": "log/events.csv", "items": "meta/items.csv", "users": "meta/users.csv"}


@pytest.mark.parametrize("path", ["", *NESTED.values()])
def test_files_in_folders_are_examined_by_their_own_contract(nested, path):
    assert doctor(nested / path, config(nested, **NESTED)) == []


@pytest.mark.parametrize(
    ("file", "rows", "kind"),
    [
        ("meta/items.csv", [("i0", "x"), ("i0", "y")], "item_id occurs more than once"),
        ("meta/users.csv", [("u0", 1), ("", 2)], "user_id is missing"),
        ("meta/users.csv", [("u0", 1, 2)], "wrong number of fields"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_what_is_wrong_with_a_file_is_said_of_that_file(nested, file, rows, kind, whole):
    names = "item_id,title" if "items" in file else "user_id,age"
    write_csv(nested / file, rows, names)
    problems = doctor(nested if whole else nested / file, config(nested, **NESTED))
    found = {(p.file, p.kind) for p in problems if p.kind != "item is not in the items table"}
    assert found == {(nested / file, kind)}


def test_an_unreadable_items_file_is_not_blamed_on_the_log(nested):
    (nested / "meta/items.csv").write_bytes(b"item_id,title\ni0,\xe9\n")
    problems = doctor(nested, config(nested, **NESTED))
    assert {p.file for p in problems} == {nested / "meta/items.csv"}


def test_a_missing_item_names_the_file_that_lists_items(nested):
    write_csv(nested / "meta/items.csv", [("i0", "x")], "item_id,title")
    problems = doctor(nested / "log/events.csv", config(nested, **NESTED))
    assert {p.kind for p in problems} == {"item is not in the items table"}
    assert all(f"add the item to {nested / 'meta/items.csv'}" in p.fix for p in problems)
