"""The doctor names line, column, finding and fix; the oracle is the file spelled out."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_log import START, config, good_rows, write_csv

from hpgr.intake.doctor import doctor
from hpgr.intake.file_problems import LINES_PER_KIND, FileProblem


def examine(path: Path, **data) -> list[FileProblem]:
    return doctor(path, config(path.parent, **data))


def kinds(problems: list[FileProblem]) -> list[tuple[int | None, str]]:
    return [(p.line, p.kind) for p in problems]


def test_good_file_has_no_problem(tmp_path):
    assert examine(write_csv(tmp_path / "log.csv", good_rows(50))) == []


def test_each_bad_line_is_named_with_its_finding(tmp_path):
    rows = [
        *good_rows(3),
        ("nan", "i", START),
        ("u", "i", START * 1000),
        ("u", "i", -5),
        ("u",),
        good_rows(1)[0],
    ]
    problems = examine(write_csv(tmp_path / "log.csv", rows))
    assert [(p.line, p.column, p.kind) for p in problems] == [
        (None, "timestamp", "mixed formats of time"),
        (5, "user_id", "user_id is missing"),
        (6, "timestamp", "timestamp is in milliseconds or finer"),
        (7, "timestamp", "timestamp is too early"),
        (8, None, "wrong number of fields"),
        (8, "item_id", "item_id is missing"),
        (8, "timestamp", "timestamp is missing"),
        (9, None, "exact duplicate"),
    ]
    assert problems[2].found == f"'{START * 1000}'"
    assert problems[4].found == "'1 fields instead of 3'"
    assert problems[0].found == "6 x epoch seconds, 1 x epoch milliseconds or finer"


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ("2020-09-13 10:00", "a date"),
        ("13/09/2020", "a date"),
        ("1600000000.5", "epoch seconds with a fraction"),
        ("1.6E+09", "scientific notation"),
        ("yesterday", "no number"),
    ],
)
def test_time_that_is_no_number_is_called_what_it_is(tmp_path, value, shape):
    problems = examine(write_csv(tmp_path / "log.csv", [("u", "i", value)]))
    assert kinds(problems) == [(2, f"timestamp is {shape}")]


def test_advice_on_dates_fits_all_dates_of_the_column(tmp_path):
    # Only the last row shows that the day comes first.
    rows = [*(("u", f"i{n}", "03/04/2020") for n in range(20)), ("u", "j", "31/12/2020")]
    problems = examine(write_csv(tmp_path / "log.csv", rows))
    assert {p.kind for p in problems} == {"timestamp is a date"}
    assert all("format='%d/%m/%Y'" in p.fix for p in problems)


def test_columns_are_called_by_their_name_in_the_file(tmp_path):
    path = write_csv(tmp_path / "log.csv", [("", "i", START)], "who,what,when")
    columns = {"user_id": "who", "item_id": "what", "timestamp": "when"}
    (problem,) = examine(path, columns=columns)
    assert (problem.line, problem.column) == (2, "who")


def test_missing_column_comes_with_a_suggestion(tmp_path):
    (problem,) = examine(write_csv(tmp_path / "log.csv", [(1, 2, 3)], "UserID,item_id,timestamp"))
    assert (problem.line, problem.column, problem.kind) == (1, "user_id", "missing column")
    assert problem.fix.startswith("did you mean 'UserID'? Set data.columns.user_id")


def test_repeated_header_is_found(tmp_path):
    names = "user_id,item_id,timestamp,item_id"
    (problem,) = examine(write_csv(tmp_path / "log.csv", [(1, 2, 3, 4)], names))
    assert (problem.kind, problem.column, problem.found) == (
        "repeated column", "item_id", "it in places 2, 4",
    )  # fmt: skip


def test_byte_order_mark_and_windows_line_ends_are_only_notes(tmp_path):
    text = f"user_id,item_id,timestamp\r\nu,i,{START}\r\n"
    (tmp_path / "log.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    problems = examine(tmp_path / "log.csv")
    assert kinds(problems) == [(1, "byte order mark"), (None, "Windows line ends")]
    assert not any(p.serious for p in problems)


def test_lines_that_are_not_utf8_are_named(tmp_path):
    content = f"user_id,item_id,timestamp\nu,i,{START}\nu,".encode() + b"\xe9,5\n"
    (tmp_path / "log.csv").write_bytes(content)
    (problem,) = examine(tmp_path / "log.csv")
    assert (problem.line, problem.kind, problem.found) == (3, "not UTF-8", "byte E9")


def test_utf16_is_not_read_as_text(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n", encoding="utf-16-le")
    (problem,) = examine(tmp_path / "log.csv")
    assert problem.kind == "unreadable" and "UTF-16" in problem.found


@pytest.mark.parametrize(
    ("content", "kind"), [("", "unreadable"), ("user_id,item_id,timestamp\n", "no rows")]
)
def test_empty_file(tmp_path, content, kind):
    (tmp_path / "log.csv").write_text(content)
    assert kinds(examine(tmp_path / "log.csv")) == [(None, kind)]


def test_absent_file(tmp_path):
    assert kinds(examine(tmp_path / "log.csv")) == [(None, "missing")]


def test_open_quote_is_found_with_its_line(tmp_path):
    text = f'user_id,item_id,timestamp\nu,i,{START}\nu,"i,5\n' + "x" * 140_000
    (tmp_path / "log.csv").write_text(text)
    (problem,) = examine(tmp_path / "log.csv")
    assert "row that starts in line 3" in problem.found


def test_many_lines_of_a_kind_are_counted_not_listed(tmp_path):
    rows = [("u", f"i{n}", -n) for n in range(1, 5001)]
    problems = examine(write_csv(tmp_path / "log.csv", rows))
    assert [p.line for p in problems] == list(range(2, 2 + LINES_PER_KIND))
    assert [p.more for p in problems] == [0] * (LINES_PER_KIND - 1) + [5000 - LINES_PER_KIND]
    assert f"{5000 - LINES_PER_KIND:,} more lines" in str(problems[-1])


def test_parquet_rows_are_counted_from_one(tmp_path):
    table = pa.table({"user_id": [1, None], "item_id": [1, 2], "timestamp": [START, START]})
    pq.write_table(table, tmp_path / "log.parquet")
    assert kinds(examine(tmp_path / "log.parquet")) == [(2, "user_id is missing")]


def test_items_file_is_known_by_its_name(tmp_path):
    path = write_csv(tmp_path / "items.csv", [(1, "A"), (2, "B"), (1, "C")], "item_id,title")
    problems = examine(path, items="items.csv")
    assert kinds(problems) == [(n, "item_id occurs more than once") for n in (2, 4)]


def test_folder_of_a_table_is_examined_file_by_file(tmp_path):
    write_csv(tmp_path / "log.csv", [*good_rows(2), ("u", "stranger", START)])
    write_csv(tmp_path / "items.csv", [("i0", "A"), ("i1", "B"), ("", "C")], "item_id,title")
    problems = doctor(tmp_path, config(tmp_path, items="items.csv"))
    assert [(p.file.name, p.line, p.kind) for p in problems] == [
        ("log.csv", 4, "item is not in the items table"),
        ("items.csv", 4, "item_id is missing"),
    ]


def test_folder_of_a_known_format(tmp_path):
    (tmp_path / "u.data").write_bytes(b"1\t10\t5\t978300760\n1\t\t5\t978300761\n")
    (tmp_path / "items.tsv").write_bytes(b"10\tA\tDrama\n10\tB\tWar\n")
    (tmp_path / "u.user").write_bytes(b"1|24|M|writer|85711\n")
    problems = doctor(tmp_path, config(tmp_path, format="movielens-100k"))
    assert [(p.file.name, p.line, p.kind) for p in problems] == [
        ("u.data", 2, "item_id is missing"),
        ("items.tsv", 1, "item_id occurs more than once"),
        ("items.tsv", 2, "item_id occurs more than once"),
    ]


def test_a_problem_reads_as_one_sentence(tmp_path):
    (problem,) = examine(write_csv(tmp_path / "log.csv", [("u", "i", -5)]))
    assert str(problem) == (
        f"{tmp_path}/log.csv, line 2, timestamp: timestamp is too early: found '-5', expected at "
        "least 631152000 (validate.min_timestamp); correct the unit or the clock, or lower "
        "validate.min_timestamp"
    )
