"""A table may be a folder of parts, as Spark writes it; what is no table is refused at once.

The oracles are the same rows in one file, and rows spelled out.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from own_log import START, config, good_rows, write_csv

from hpgr.intake.doctor import doctor
from hpgr.intake.expectations import Expectations
from hpgr.intake.incoming import examine
from hpgr.intake.increments import place
from hpgr.intake.public_logs import fetch
from hpgr.intake.raw_log import read_raw
from hpgr.intake.validate import validate
from hpgr.runtime import UserError, read_json
from hpgr.workspace import HERE

NAMES = ["user_id", "item_id", "timestamp"]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty raw folder of a project, with the project as the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Expectations, "write_docs", lambda *_, **__: None)
    Path("data/shop").mkdir(parents=True)
    return Path("data/shop")


def table(rows) -> pa.Table:
    return pa.table(dict(zip(NAMES, map(pa.array, zip(*rows, strict=True)), strict=True)))


def write_parts(folder: Path, rows, size: int = 40) -> Path:
    """Rows in parts as Spark leaves them, with its marks and an empty part."""
    folder.mkdir(parents=True)
    for n, start in enumerate(range(0, len(rows), size)):
        part = table(rows[start : start + size])
        pq.write_table(part, folder / f"part-{n:05d}-c000.snappy.parquet")
        (folder / f".part-{n:05d}-c000.snappy.parquet.crc").write_bytes(b"crc\0")
    pq.write_table(table(rows[:1]).slice(1), folder / "part-99999-c000.snappy.parquet")
    (folder / "_SUCCESS").touch()
    return folder


def accepted() -> list[tuple]:
    events = pd.read_parquet(HERE.validated / "events.parquet")
    return list(events[NAMES].itertuples(index=False, name=None))


@pytest.mark.parametrize("name", ["events", "events.parquet"])
def test_a_folder_of_parquet_parts_is_a_log(log, name):
    write_parts(log / name, good_rows(100))
    cfg = config(log, interactions=name)
    assert doctor(log, cfg) == doctor(log / name, cfg) == []
    validate(cfg)
    assert accepted() == good_rows(100)
    inputs = read_json(HERE.validated / "summary.json")["inputs"]
    assert list(inputs) == [
        f"{name}/part-{n}-c000.snappy.parquet" for n in ("00000", "00001", "00002", "99999")
    ]


def test_a_raw_folder_may_have_the_name_of_its_table(log):
    write_parts(log / "shop", good_rows(10))
    write_csv(log / "items.csv", [("i0", "A"), ("i0", "B")], "item_id,title")
    problems = doctor(log, config(log, interactions="shop", items="items.csv"))
    assert {p.file.name for p in problems if p.kind == "item_id occurs more than once"} == {
        "items.csv"
    }


def test_a_bad_row_is_named_with_its_part_and_a_copy_across_parts_is_a_copy(log):
    rows = [*good_rows(50), ("", "i", START), good_rows(1)[0], *good_rows(200)[60:]]
    write_parts(log / "events", rows)
    cfg = config(log, interactions="events", limits={"max_bad_share": 0.1})
    validate(cfg)
    quarantine = pd.read_parquet(HERE.validated / "quarantine.parquet")
    part = "events/part-00001-c000.snappy.parquet"
    assert quarantine[["file", "line", "reason"]].values.tolist() == [
        [part, 11, "user_id is missing"],
        [part, 12, "exact duplicate"],
    ]
    problems = [(p.file, p.line) for p in doctor(log, cfg)]
    assert problems == [(log / part, 11), (log / part, 12)]


def test_names_of_partition_folders_are_columns(log):
    rows = [(*row, ["view", "buy now/ä", None][n % 3]) for n, row in enumerate(good_rows(60))]
    frame = pd.DataFrame(rows, columns=[*NAMES, "event"])
    ds.write_dataset(
        pa.Table.from_pandas(frame, preserve_index=False),
        log / "events",
        format="parquet",
        partitioning=ds.partitioning(pa.schema([("event", pa.string())]), flavor="hive"),
    )
    cfg = config(log, interactions="events", columns={"action": "event"})
    assert not [problem for problem in doctor(log / "events", cfg) if problem.serious]
    validate(cfg)
    events = pd.read_parquet(HERE.validated / "events.parquet")[[*NAMES, "action"]].astype(object)
    found = events.where(events.notna(), None).itertuples(index=False, name=None)
    assert sorted(found, key=str) == sorted(rows, key=str)


def test_tables_of_items_and_users_may_be_folders(log):
    write_csv(log / "log.csv", good_rows(30))
    for name, key in (("items", "item_id"), ("users", "user_id")):
        for n in range(2):
            folder = log / name / f"region={n}"
            folder.mkdir(parents=True)
            rows = [(f"{name[0]}{k}", f"T{k}") for k in range(20) if k % 2 == n]
            write_csv(folder / "part-0.csv", rows, f"{key},title")
    raw = read_raw(config(log, items="items", users="users").data, 1000)
    assert sorted(raw.items["title"]) == sorted(f"T{k}" for k in range(20))
    assert dict(zip(raw.users["user_id"], raw.users["region"], strict=True)) == {
        f"u{k}": str(k % 2) for k in range(20)
    }


def test_each_part_of_text_has_its_own_header_and_dialect(log):
    (log / "events").mkdir()
    (log / "events/part-0").write_text('user_id,item_id,timestamp\nu,"a,b",1\nu\nv,c,2\n')
    (log / "events/part-1").write_text('timestamp\titem_id\tuser_id\n3\t"x\tw\n4\t"y\tw\n')
    (log / "events/part-2").touch()
    raw = read_raw(config(log, interactions="events").data, 1000)
    events = pd.concat(raw.events)
    assert events["item_id"].fillna("").tolist() == ["a,b", "", "c", '"x', '"y']
    assert events["line"].tolist() == [2, 3, 4, 2, 3]
    assert [raw.sources[n].name for n in events["source"]] == ["part-0"] * 3 + ["part-1"] * 2
    assert [dialect.quotes for dialect in raw.dialects] == ["doubled", "none"]


def test_a_part_that_lacks_a_column_is_named(log):
    write_parts(log / "events", good_rows(10))
    odd = log / "events/part-00007.parquet"
    pq.write_table(table(good_rows(3)).drop_columns("item_id"), odd)
    cfg = config(log, interactions="events")
    with pytest.raises(UserError, match=r"part-00007\.parquet lacks 1 .*\n.*'item_id'"):
        read_raw(cfg.data, 100)
    (problem,) = doctor(log, cfg)
    assert (problem.file, problem.kind, problem.column) == (odd, "missing column", "item_id")


def test_ids_that_only_folders_name_are_refused(log):
    write_csv(log / "log.csv", good_rows(5))
    folder = log / "items/item_id=i0"
    folder.mkdir(parents=True)
    write_csv(folder / "part-0.csv", [("A",)], "name")
    (problem,) = doctor(log / "items", config(log, items="items", columns={"title": None}))
    assert "part-0.csv has none of the columns item_id" in problem.found


def test_a_folder_without_data_files_is_refused(log):
    (log / "events").mkdir()
    (log / "events/_SUCCESS").touch()
    with pytest.raises(UserError, match="is a folder without data files"):
        read_raw(config(log, interactions="events").data, 100)


# --- batches ------------------------------------------------------------------------------------

BATCH = [(user, item, time + 10**7) for user, item, time in good_rows(200)]


def taken_in(cfg, source) -> list[tuple]:
    """The log after the batch at `source` is in it."""
    verdict = examine(cfg, source, evidence=False)
    assert verdict.reasons == ()
    place(cfg.data.path, f"0001-{verdict.batch}", verdict.files)
    assert examine(cfg, source, evidence=False).taken is not None
    validate(cfg)
    return accepted()


def validated(log: Path, name: str):
    cfg = config(log, interactions=name, limits={"max_volume_change": 9.0})
    validate(cfg)
    return cfg


def test_a_folder_of_parts_is_a_batch_for_a_log_of_one_file(log, tmp_path):
    pq.write_table(table(good_rows(200)), log / "log.parquet")
    cfg = validated(log, "log.parquet")
    assert taken_in(cfg, write_parts(tmp_path / "new", BATCH)) == [*good_rows(200), *BATCH]


def test_a_file_is_a_batch_for_a_log_of_parts(log, tmp_path):
    write_parts(log / "events", good_rows(200))
    cfg = validated(log, "events")
    pq.write_table(table(BATCH), tmp_path / "new.parquet")
    assert taken_in(cfg, tmp_path / "new.parquet") == [*good_rows(200), *BATCH]


@pytest.mark.parametrize("inside", ["new", "new/events"])
def test_parts_are_a_batch_for_a_log_of_parts(log, tmp_path, inside):
    write_parts(log / "events", good_rows(200))
    cfg = validated(log, "events")
    write_parts(tmp_path / inside, BATCH)
    assert taken_in(cfg, tmp_path / "new") == [*good_rows(200), *BATCH]


def test_the_evidence_against_a_batch_of_parts_names_the_part(log, tmp_path):
    write_parts(log / "events", good_rows(200))
    cfg = validated(log, "events")
    bad = [(user, item, time * 1000) for user, item, time in BATCH]
    verdict = examine(cfg, write_parts(tmp_path / "new", bad), evidence=True)
    assert verdict.reasons
    summary = read_json(Path("artifacts/rejected/summary.json"))
    assert list(summary["dialects"].values()) == ["Parquet"] * 6
    quarantine = pd.read_parquet("artifacts/rejected/quarantine.parquet")
    assert Path(quarantine["file"].iloc[-1]).name == "part-00004-c000.snappy.parquet"


# --- what is no table ---------------------------------------------------------------------------


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def unix_socket(folder: Path) -> Path:
    here = Path.cwd()
    os.chdir(folder)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind("socket")
    finally:
        os.chdir(here)
    return folder / "socket"


def link_to_nothing(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "gone")
    return folder / "link"


def link_to_itself(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


def pipe_among_parts(folder: Path) -> Path:
    os.mkfifo(write_parts(folder / "parts", good_rows(5)) / "part-00008.parquet")
    return folder / "parts"


NO_TABLES = [
    (lambda _: Path("/dev/zero"), "neither a file nor a folder"),
    (lambda _: Path("/dev/null"), "neither a file nor a folder"),
    (pipe, "neither a file nor a folder"),
    (unix_socket, "neither a file nor a folder"),
    (link_to_nothing, "is a link to .*, which does not exist"),
    (link_to_itself, "cannot be read"),
    (pipe_among_parts, "neither a file nor a folder"),
]


@pytest.mark.parametrize(("make", "message"), NO_TABLES)
def test_what_is_no_table_is_no_batch(log, tmp_path, make, message):
    pq.write_table(table(good_rows(200)), log / "log.parquet")
    cfg = validated(log, "log.parquet")
    with pytest.raises(UserError, match=message):
        examine(cfg, make(tmp_path), evidence=True)


@pytest.mark.parametrize(("make", "message"), NO_TABLES)
def test_the_doctor_says_what_is_no_table(log, tmp_path, make, message):
    (problem,) = doctor(make(tmp_path), config(log))
    assert problem.kind == "unreadable"
    assert pd.Series([problem.found]).str.contains(message).all()


@pytest.mark.parametrize("role", ["interactions", "items", "users"])
@pytest.mark.parametrize(("make", "message"), NO_TABLES[2:])
def test_what_is_no_table_is_no_part_of_a_log(log, role, make, message):
    write_csv(log / "log.csv", good_rows(5))
    with pytest.raises(UserError, match=message):
        read_raw(config(log, **{role: make(log).name}).data, 100)


def test_a_pipe_in_place_of_an_increments_items_is_refused(log):
    write_csv(log / "log.csv", good_rows(5))
    write_csv(log / "items.csv", [("i0", "A")], "item_id,title")
    increment = log / "increments/0001-aaaaaaaaaaaa"
    increment.mkdir(parents=True)
    write_csv(increment / "log.csv", good_rows(5))
    os.mkfifo(increment / "items.csv")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        read_raw(config(log, items="items.csv").data, 100)


def test_data_cannot_be_fetched_into_a_device():
    with pytest.raises(UserError, match="/dev/null is no folder"):
        fetch("ml-100k", Path("/dev/null"))
