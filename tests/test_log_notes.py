"""Notes on a log that is read anyway; the oracle is the log spelled out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from own_log import START, config, good_rows, write_csv

from hpgr.intake.doctor import doctor
from hpgr.intake.expectations import Expectations
from hpgr.intake.file_problems import FileProblem
from hpgr.intake.formats import column_names
from hpgr.intake.log_notes import notes_on_rows
from hpgr.intake.raw_log import read_raw
from hpgr.intake.staging import stage
from hpgr.intake.validate import validate
from hpgr.runtime import UserError, read_json
from hpgr.workspace import HERE

PLACEHOLDER = "id that may mean no "


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project folder of a run, with an empty raw folder `raw` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Expectations, "write_docs", lambda *_, **__: None)
    (tmp_path / "raw").mkdir()
    return Path("raw")


def notes(folder: Path, **data) -> list[FileProblem]:
    return [p for p in doctor(folder, config(folder, **data)) if not p.serious]


def notes_on_ids(folder: Path, rows: list[tuple], names: str = "") -> list[FileProblem]:
    """Those on the ids of a log, without the doctor's rules."""
    path = write_csv(folder / "log.csv", rows, names)
    data = config(folder, columns={"session_id": "session_id" if names else None}).data
    stage(read_raw(data, 1000).events, folder / "staged.parquet")
    return notes_on_rows(folder / "staged.parquet", [path], column_names(data), [])


def with_user(word: str, count: int) -> list[tuple[str, str, int]]:
    return [*good_rows(200), *((word, f"i{n % 11}", START + 7 + 60 * n) for n in range(count))]


@pytest.mark.parametrize("word", ["NA", "N/A", "n/a", "nil", "NIL", "none", "-", "Unknown"])
def test_a_word_for_no_value_is_noted_with_its_share(folder, word):
    (note,) = notes_on_ids(folder, with_user(word, 50))
    assert (note.kind, note.column, note.serious) == (f"{PLACEHOLDER}user", "user_id", False)
    assert note.found == f"{word!r} in 50 of 250 rows (20.0%)"


@pytest.mark.parametrize("word", ["0", "-1", "00000000-0000-0000-0000-000000000000", "leer"])
def test_an_id_that_towers_over_all_others_is_noted_whatever_its_name(folder, word):
    assert [n.found[:3] for n in notes_on_ids(folder, with_user(word, 400))] == [repr(word)[:3]]


@pytest.mark.parametrize(("word", "count"), [("0", 20), ("u0", 20), ("NA", 1)])
def test_an_id_of_an_ordinary_share_is_not_noted(folder, word, count):
    assert notes_on_ids(folder, with_user(word, count)) == []


@pytest.mark.parametrize("column", ["item_id", "session_id"])
def test_words_for_no_value_are_noted_of_items_and_sessions_too(folder, column):
    rows = [(f"u{n % 7}", f"i{n}", START + 60 * n, f"s{n}") for n in range(100)]
    place = 1 if column == "item_id" else 3
    rows = [(*r[:place], "NA", *r[place + 1 :]) if n % 5 == 0 else r for n, r in enumerate(rows)]
    (note,) = notes_on_ids(folder, rows, "user_id,item_id,timestamp,session_id")
    assert note.column == column


def test_the_doctor_notes_them_too(folder):
    write_csv(folder / "log.csv", with_user("NA", 50))
    assert [note.kind for note in notes(folder)] == [f"{PLACEHOLDER}user"]


def test_notes_are_in_the_summary_and_the_report_of_the_stage(folder):
    write_csv(folder / "log.csv", with_user("NA", 50))
    validate(config(folder))
    (message,) = read_json(HERE.validated / "summary.json")["notes"]
    assert "'NA' in 50 of 250 rows" in message
    assert "&#39;NA&#39; in 50 of 250 rows" in (HERE.validated / "report.html").read_text()
    assert (pd.read_parquet(HERE.validated / "events.parquet")["user_id"] == "NA").sum() == 50


def test_double_clicks_are_left_out_and_counted_but_do_not_refuse_the_log(folder):
    rows = good_rows(97)
    write_csv(folder / "log.csv", [*rows, *rows[:3]])
    validate(config(folder, limits={"max_bad_share": 0.0}))
    summary = read_json(HERE.validated / "summary.json")
    assert (summary["accepted"], summary["duplicates"], summary["quarantined"]) == (97, 3, 0)
    assert summary["reasons"] == {"exact duplicate": 3}
    assert summary["notes"] == []
    quarantine = pd.read_parquet(HERE.validated / "quarantine.parquet")
    assert quarantine["reason"].tolist() == ["exact duplicate"] * 3


def test_a_copy_of_a_bad_row_is_as_bad(folder):
    write_csv(folder / "log.csv", [*good_rows(98), *[("", "i", START)] * 2])
    with pytest.raises(UserError, match=r"found 0\.02, expected at most 0\.01"):
        validate(config(folder, limits={"max_bad_share": 0.01}))


def test_a_log_that_was_written_twice_is_noted(folder):
    write_csv(folder / "log.csv", good_rows(50) * 2)
    validate(config(folder))
    (message,) = read_json(HERE.validated / "summary.json")["notes"]
    assert "50 of 100 rows (50.0%) are copies of others" in message


@pytest.mark.parametrize(
    ("actions", "noted"),
    [
        (["5 stars", "4 stars"], True),
        (["view", "buy"], True),
        (["4,5", "2,0"], False),
        (["5", "3.5"], False),
    ],
)
def test_the_doctor_says_where_actions_are_no_numbers(folder, actions, noted):
    rows = [(*row, f'"{actions[n % 2]}"') for n, row in enumerate(good_rows(60))]
    write_csv(folder / "log.csv", rows, "user_id,item_id,timestamp,stars")
    found = notes(folder, columns={"action": "stars"})
    assert [note.kind for note in found] == ["actions that are no numbers"] * noted
    assert all("60 of 60 events" in note.found and note.column == "stars" for note in found)


def test_numbers_of_actions_have_one_spelling_in_text_too(folder):
    spelled = ["5.0", "5", "4.50", "view", "1.10.0"]
    rows = [(*row, spelled[n % 5]) for n, row in enumerate(good_rows(5))]
    write_csv(folder / "log.csv", rows, "user_id,item_id,timestamp,stars")
    raw = read_raw(config(folder, columns={"action": "stars"}).data, 1000)
    assert pd.concat(raw.events)["action"].tolist() == ["5", "5", "4.5", "view", "1.10.0"]
