"""The meaning of quotes in a text is taken from all its lines, or the file is refused.

The oracles are Python's csv module with the dialect stated, plain splitting, and rows spelled out.
"""

from __future__ import annotations

import csv
import io
import re

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from own_log import START, config, good_rows, write_csv

from hpgr.intake import raw_file
from hpgr.intake.delimited_text import Dialect
from hpgr.intake.dialect import dialect_of
from hpgr.intake.doctor import doctor
from hpgr.intake.table_files import table_chunks, table_whole
from hpgr.intake.validate import validate
from hpgr.runtime import UserError, read_json
from hpgr.workspace import HERE

NAMES = ["user_id", "item_id", "timestamp"]
COLUMNS = {name: name for name in NAMES}


def rows_of(path, quoting="auto"):
    """Fields of every row; nothing is missing but what is empty."""
    frame = pd.concat(table_chunks(path, COLUMNS, 1000, quoting), ignore_index=True)
    return [tuple(row) for row in frame[NAMES].fillna("").itertuples(index=False)]


def lines_of(path, quoting="auto"):
    return pd.concat(table_chunks(path, COLUMNS, 1000, quoting))["line"].tolist()


def written(folder, text, name="log.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def text(*rows, separator="\t"):
    return "".join(separator.join(row) + "\n" for row in [NAMES, *rows])


@pytest.mark.parametrize(
    ("rows", "quotes"),
    [
        ([("u", '"Heroes', "1"), ("v", "x", "2"), ("u", '"Low', "3")], "none"),
        ([("u", '"Great" Cats', "1"), ("v", "x", "2")], "none"),
        ([("u", '12" mix', "1"), ("v", '"Heroes" (live)', "2")], "none"),
        ([("u", 'a "b" c', "1"), ("u", '"Heroes', "2"), ('"v', 'say "x"', "3")], "none"),
        ([("u", '"say ""hi"""', "1"), ("v", "x", "2")], "doubled"),
        ([("u", '"a\tb"', "1"), ("v", "x", "2")], "doubled"),
        ([("u", '"a\nb"', "1"), ("v", "x", "2")], "doubled"),
        ([("u", '"a\n\nb\nc\td"', "1"), ("v", "x", "2")], "doubled"),
        ([("u", '"The \\"Best\\" of six"', "1"), ("v", "x", "2")], "backslash"),
        ([("u", '"The \\"Best\\"\tof six"', "1"), ('"u"', '"v"', "2")], "backslash"),
        ([("u", '"ends with \\"one\\""', "1"), ("v", '"slash\\\\"', "2")], "backslash"),
        ([("u", '"C:\\dir\\"', "1"), ("v", '"C:\\"', "2")], "doubled"),
        ([("u", "x", "1")], "doubled"),
    ],
)
@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_the_dialect_that_the_lines_show_is_taken(tmp_path, rows, quotes, separator):
    lines = text(*rows).replace("\t", separator)
    assert dialect_of(written(tmp_path, lines), "auto") == Dialect(separator, quotes)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        # Quotes that are well-formed by chance, around what looks like whole rows.
        ([("u", '"Heroes', "1"), ("v", "x", "2"), ("u", 'Low"', "3"), ("v", "y", "4")], 2),
        ([("v", "x", "2"), ("u", '"Heroes', "1"), ("u", 'Low"', "3")], 3),
        # Values wrapped in quotes, and others with quotes that neither wrap nor escape.
        ([("u", '"a\tb"', "1"), ("v", '"Great" Cats', "2")], 3),
        ([("u", '"a"', "1"), ("v", '"b"', "2"), ("w", '"Great" Cats', "3")], 4),
        ([("u", '"a \\"b\\"\tc"', "1"), ("v", '"Great" Cats', "2")], 3),
        ([("u", '"a ""b"""', "1"), ("v", '"a \\"b\\"\tc"', "2"), ("w", "x", "3")], 3),
        ([("u", '"a"', "1"), ("v", '"Heroes', "2"), ("w", '"b"', "3"), ("x", '"c"', "4")], 3),
        ([("u", '"a\nb"', "1"), ("v", '"c\td"', "2"), ("w", '"Great" Cats', "3")], 5),
        # One backslash, or two.
        ([("u", "x", "1"), ("v", '"a\tb\\\\"', "2")], 3),
        # A file that was cut off inside a value, or one stray quote.
        ([("u", "x", "1"), ("u", '"Heroes', "2"), ("v", "y", "3")], 3),
    ],
)
def test_ambiguous_quotes_are_refused_with_their_line(tmp_path, rows, line):
    path = written(tmp_path, text(*rows))
    with pytest.raises(UserError, match=rf"line {line}\b.*quote.*data\.quoting"):
        rows_of(path)
    (problem,) = doctor(path, config(tmp_path))
    assert problem.serious and f"line {line}" in problem.found


@pytest.mark.parametrize("quoting", ["auto", "doubled", "backslash", "none"])
def test_a_stated_dialect_is_obeyed(tmp_path, quoting):
    path = written(tmp_path, text(("u", '"a"', "1")))
    assert rows_of(path, quoting) == [("u", '"a"' if quoting == "none" else "a", "1")]


@pytest.mark.parametrize("quoting", ["doubled", "backslash"])
def test_a_text_that_breaks_the_stated_dialect_is_refused_with_the_line(tmp_path, quoting):
    path = written(tmp_path, text(("u", "x", "1"), ("u", '"Great" Cats', "2")))
    with pytest.raises(UserError, match=r"line 3.*neither wraps a whole value.*data\.quoting"):
        rows_of(path, quoting)


def test_rows_between_two_stray_quotes_are_all_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [tuple(map(str, row)) for row in good_rows(55)]
    rows[40] = ("u1", '"Heroes', rows[40][2])
    rows[50] = ("u1", '"Low', rows[50][2])
    (tmp_path / "raw").mkdir()
    written(tmp_path / "raw", text(*rows))
    validate(config(tmp_path / "raw"))
    events = pd.read_parquet(HERE.validated / "events.parquet")
    expected = [(user, item, int(time)) for user, item, time in rows]
    assert list(events[NAMES].itertuples(index=False, name=None)) == expected
    dialect = 'tab-separated; a quote (") is a character like any other'
    assert read_json(HERE.validated / "summary.json")["dialects"] == {"log.csv": dialect}
    assert "a character like any other" in (HERE.validated / "report.html").read_text()
    (note,) = doctor(tmp_path / "raw", config(tmp_path / "raw"))
    assert (note.kind, note.serious) == ("dialect", False)


def test_a_few_lucky_line_breaks_do_not_outweigh_a_file_of_quotes(tmp_path):
    legal = [(f"u{n}", '"a\tb"', "1") for n in range(30)]
    path = written(tmp_path, text(*legal, ("v", '"x\t1\ny\t2"', "3"), ("w", "z", "4")))
    assert len(rows_of(path)) == 32


def test_lines_are_numbered_through_values_with_line_breaks(tmp_path):
    lines = 'user_id,item_id,timestamp\r\n\r\nu,"a\r\nb\n\nc",1\r\nv\rw,"x",2,3\n\nz,"",4'
    path = written(tmp_path, lines)
    assert lines_of(path) == [3, 7, 8, 10]
    assert rows_of(path) == [
        ("u", "a\r\nb\n\nc", "1"), ("v", "", ""), ("w", "x", "2"), ("z", "", "4"),
    ]  # fmt: skip


def test_a_ragged_line_with_quotes_is_one_bad_row(tmp_path):
    rows = [("u", '"a\tb"', "1"), ("v", '"c\td"'), ("w", '"e"', "3", '"f\tg"')]
    path = written(tmp_path, text(*rows))
    frame = pd.concat(table_chunks(path, COLUMNS, 10, "doubled"))
    assert frame["ragged"].fillna("").tolist() == [
        "", "2 fields instead of 3", "4 fields instead of 3",
    ]  # fmt: skip
    assert frame["item_id"].tolist() == ["a\tb", "c\td", "e"]


def test_a_quoted_value_of_any_length_is_bounded(tmp_path):
    path = written(tmp_path, text(("u", '"' + "x y\n" * (raw_file.MAX_LINE // 3) + '"', "1")))
    with pytest.raises(UserError, match=r"line 2.*longer than 1,048,576 characters"):
        rows_of(path, "doubled")


@pytest.mark.parametrize("name", ["a*b?.csv", "[x].csv", "a b%20'\".csv", "{1}.csv"])
def test_names_of_files_are_taken_literally(tmp_path, name):
    write_csv(tmp_path / "other.csv", good_rows(3))
    path = write_csv(tmp_path / name, good_rows(5))
    assert len(rows_of(path)) == 5


def test_a_table_of_items_keeps_escaped_quotes(tmp_path):
    lines = 'item_id,title\ni6,"The \\"Best\\" of, six"\ni8,"Ends with \\\\"\ni9,C:\\dir\n'
    frame, _ = table_whole(written(tmp_path, lines), {"item_id": "item_id", "title": "title"})
    assert frame["title"].tolist() == ['The "Best" of, six', "Ends with \\", "C:\\dir"]


# --- random texts -------------------------------------------------------------------------------

VALUES = st.text(st.sampled_from("ab\"\\,;\t|\n 0é'"), max_size=8)
TABLES = st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=12)
# Line end and quoting; the csv module quotes a line feed only where that is part of the line end.
WRITERS = [("\n", csv.QUOTE_MINIMAL), ("\r\n", csv.QUOTE_MINIMAL), ("\r", csv.QUOTE_ALL)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("texts")


def stripped(rows):
    """The value that a table gives back: white space alone is no value."""
    return [tuple(v if v.strip() else "" for v in row) for row in rows]


def same_or_refused(path, expected):
    """Read as expected, or refused with the line of a quote."""
    try:
        found = rows_of(path)
    except UserError as error:
        (line,) = re.findall(r"line (\d+)", str(error))[:1]
        with path.open(encoding="utf-8", newline="") as file:
            assert '"' in list(file)[int(line) - 1]
    else:
        assert found == expected


@settings(max_examples=60, deadline=None)
@given(
    TABLES,
    st.sampled_from(",;\t|"),
    st.sampled_from(WRITERS),
)
def test_what_the_csv_module_writes_comes_back(folder, rows, separator, how):
    end, quoting = how
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([NAMES, *rows])
    path = written(folder, out.getvalue())
    assert rows_of(path, "doubled") == stripped(rows)
    same_or_refused(path, stripped(rows))


@settings(max_examples=30, deadline=None)
@given(TABLES)
def test_what_pandas_writes_comes_back(folder, rows):
    path = folder / "log.csv"
    pd.DataFrame(rows, columns=NAMES).to_csv(path, index=False)
    assert rows_of(path, "doubled") == stripped(rows)


def spark(value, separator):
    """A value as Spark's CSV writer puts it."""
    if not set(value) & {separator, '"', "\n", "\r"}:
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@settings(max_examples=60, deadline=None)
@given(TABLES, st.sampled_from(",;\t|"))
def test_what_spark_writes_comes_back(folder, rows, separator):
    rows = [*rows, ("u", 'say "hi", "you"', "1")]
    lines = [separator.join(spark(value, separator) for value in row) for row in [NAMES, *rows]]
    path = written(folder, "\n".join(lines) + "\n")
    assert rows_of(path, "backslash") == stripped(rows)
    same_or_refused(path, stripped(rows))


LINE_VALUES = st.text(st.sampled_from('ab"\\, 0'), min_size=1, max_size=6)


@settings(max_examples=120, deadline=None)
@example([("u", '"Heroes', "1"), ("v", "x", "2"), ("u", 'Low"', "3")])
@example([("u", '"a"', "1"), ("v", 'x"', "2")])
@given(st.lists(st.tuples(LINE_VALUES, LINE_VALUES, LINE_VALUES), min_size=1, max_size=12))
def test_no_line_is_lost_to_quotes(folder, rows):
    path = written(folder, text(*rows))
    assert rows_of(path, "none") == stripped(rows)
    try:
        quotes = dialect_of(path, "auto").quotes
        found = rows_of(path)
    except UserError as error:
        assert re.search(r"line \d+.*quote", str(error))
        return
    assert len(found) == len(rows)
    if quotes == "none":
        assert found == stripped(rows)
    elif quotes == "doubled":
        read = csv.reader(io.StringIO(path.read_text()), delimiter="\t", strict=True)
        assert found == stripped(list(read)[1:])


def test_events_of_an_honest_log_with_quotes_keep_their_lines(tmp_path):
    rows = [("u", '"a,b"', START), ("v", "", START), ("w", '"c\nd"', "yesterday")]
    problems = doctor(write_csv(tmp_path / "log.csv", rows), config(tmp_path))
    assert [(p.line, p.kind) for p in problems if p.line] == [
        (3, "item_id is missing"), (4, "timestamp is no number"),
    ]  # fmt: skip
