"""Raw folders become canonical chunks; the oracles are pandas and rows spelled out here."""

from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_log import config, write_csv

from hpgr.intake import spelling
from hpgr.intake.raw_log import read_raw
from hpgr.runtime import UserError

EVENTS = ["user_id", "item_id", "timestamp", "action", "session_id", "row", "line", "ragged"]


def events(cfg, chunk_rows=1000):
    return pd.concat(read_raw(cfg.data, chunk_rows).events, ignore_index=True)


def records(frame, *names):
    chosen = frame[list(names)].astype(object)
    return list(chosen.where(chosen.notna(), None).itertuples(index=False, name=None))


def test_movielens_1m(tmp_path):
    (tmp_path / "ratings.dat").write_bytes(b"1::10::5::978300760\n2::11::3::978300761\n")
    (tmp_path / "movies.dat").write_bytes(
        "10::Été: 2 (1991)::Drama|War\n11::B::\n".encode("latin-1")
    )
    (tmp_path / "users.dat").write_bytes(b"1::F::1::10::02460\n2::M::56::16::70072\n")
    cfg = config(tmp_path, format="movielens-1m")
    raw = read_raw(cfg.data, 1000)
    found = pd.concat(raw.events)
    assert records(found, *EVENTS) == [
        ("1", "10", "978300760", "5", None, 0, 1, None),
        ("2", "11", "978300761", "3", None, 1, 2, None),
    ]
    assert records(raw.items, "item_id", "title", "categories") == [
        ("10", "Été: 2 (1991)", ["Drama", "War"]),
        ("11", "B", []),
    ]
    assert records(raw.users, "user_id", "zip") == [("1", "02460"), ("2", "70072")]
    assert [p.name for p in raw.files] == ["ratings.dat", "movies.dat", "users.dat"]


def test_movielens_100k(tmp_path):
    (tmp_path / "u.data").write_bytes(b"196\t242\t3\t881250949\n")
    (tmp_path / "items.tsv").write_text("242\tKolya (1996)\tComedy|War\n", encoding="utf-8")
    (tmp_path / "u.user").write_bytes(b"196|49|M|writer|55105\n")
    raw = read_raw(config(tmp_path, format="movielens-100k").data, 1000)
    assert records(pd.concat(raw.events), *EVENTS[:4]) == [("196", "242", "881250949", "3")]
    assert records(raw.items, "item_id", "categories") == [("242", ["Comedy", "War"])]
    assert records(raw.users, "user_id", "occupation") == [("196", "writer")]


def test_complete_journey(tmp_path):
    when = [datetime(2017, 1, 1, 11, 53, 26, 500_000), datetime(1969, 12, 31, 23, 59, 59, 500_000)]
    pq.write_table(
        pa.table(
            {
                "household_id": [900, 901],
                "basket_id": [31198570044, 31198570045],
                "product_id": [7, 8],
                "transaction_timestamp": pa.array(when, pa.timestamp("ns")),
            }
        ),
        tmp_path / "transactions.parquet",
    )
    pq.write_table(
        pa.table(
            {
                "product_id": [7, 8],
                "department": ["GROCERY", "MISC"],
                "brand": ["National", "Private"],
                "product_category": ["ICE", None],
                "product_type": ["CRUSHED", None],
            }
        ),
        tmp_path / "products.parquet",
    )
    pq.write_table(
        pa.table({"household_id": [900], "age": ["65+"]}), tmp_path / "demographics.parquet"
    )
    raw = read_raw(config(tmp_path, format="complete-journey").data, 1000)
    # 2017-01-01 11:53:26 read as UTC; half a second before 1970 is second -1.
    expected = int(datetime(2017, 1, 1, 11, 53, 26, tzinfo=UTC).timestamp())
    assert records(pd.concat(raw.events), *EVENTS[:5]) == [
        ("900", "7", str(expected), None, "31198570044"),
        ("901", "8", "-1", None, "31198570045"),
    ]
    assert records(raw.items, "item_id", "title", "categories") == [
        ("7", "CRUSHED", ["GROCERY", "ICE", "National"]),
        ("8", None, ["MISC", "Private"]),
    ]
    assert records(raw.users, "user_id", "age") == [("900", "65+")]


def test_own_table_with_mapped_columns(tmp_path):
    names = "when,who,what,stars,visit,ignored"
    write_csv(tmp_path / "log.csv", [(100, "u", "i", 5, "s1", "x")], names)
    write_csv(tmp_path / "things.csv", [("i", "Thing", "a; b;;c")], "what,name,tags")
    write_csv(tmp_path / "people.csv", [("u", 7)], "who,row")
    columns = {
        "user_id": "who", "item_id": "what", "timestamp": "when", "action": "stars",
        "session_id": "visit", "title": "name", "categories": "tags",
    }  # fmt: skip
    cfg = config(
        tmp_path, columns=columns, items="things.csv", users="people.csv", category_separator=";"
    )
    raw = read_raw(cfg.data, 1000)
    assert records(pd.concat(raw.events), *EVENTS[:5]) == [("u", "i", "100", "5", "s1")]
    assert records(raw.items, "item_id", "title", "categories") == [("i", "Thing", ["a", "b", "c"])]
    assert records(raw.users, "user_id", "row") == [("u", "7")]


def test_parquet_lists_of_categories_are_kept(tmp_path):
    write_csv(tmp_path / "log.csv", [("u", "i", 1)])
    table = pa.table({"item_id": [1, 2], "title": ["A", "B"], "tags": [["a|b", "c"], None]})
    pq.write_table(table, tmp_path / "items.parquet")
    cfg = config(tmp_path, items="items.parquet", columns={"categories": "tags"})
    items = read_raw(cfg.data, 1000).items
    assert records(items, "item_id", "categories") == [("1", ["a|b", "c"]), ("2", [])]


def test_chunks_are_bounded_and_number_rows_through(tmp_path):
    write_csv(tmp_path / "log.csv", [(f"u{n}", "i", n) for n in range(2500)])
    chunks = list(read_raw(config(tmp_path).data, 1000).events)
    assert [len(chunk) for chunk in chunks] == [1000, 1000, 500]
    assert list(pd.concat(chunks)["row"]) == list(range(2500))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_dialects_read_the_same(tmp_path, separator, mark, end):
    lines = ["user_id,item_id,timestamp", '1,"a ""b""",5', "2,c,6"]
    text = end.join(line.replace(",", separator) for line in lines) + end
    (tmp_path / "log.csv").write_bytes(mark + text.encode())
    assert records(events(config(tmp_path)), *EVENTS[:3]) == [("1", 'a "b"', "5"), ("2", "c", "6")]


def test_quoted_line_breaks_and_blank_lines_keep_line_numbers(tmp_path):
    (tmp_path / "log.csv").write_text('user_id,item_id,timestamp\n1,"a\nb",5\n\n2,c,6\n')
    assert records(events(config(tmp_path)), "item_id", "row", "line") == [
        ("a\nb", 0, 2),
        ("c", 1, 5),
    ]


def test_lines_with_other_numbers_of_fields_are_marked(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n1,a\n2,b,6\n3,c,7,8\n")
    assert records(events(config(tmp_path)), "user_id", "timestamp", "ragged") == [
        ("1", None, "2 fields instead of 3"),
        ("2", "6", None),
        ("3", "7", "4 fields instead of 3"),
    ]


@pytest.mark.parametrize(
    "word", ["", "  ", "NaN", "nan", "null", "NULL", "None", "<NA>", "\\N", "#N/A", "NaT"]
)
def test_words_for_no_value_are_missing(tmp_path, word):
    write_csv(tmp_path / "log.csv", [(word, "i", 1)])
    assert events(config(tmp_path))["user_id"].isna().all()


@given(
    st.lists(
        st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\0\r"))] * 3),
        min_size=1,
        max_size=30,
    )
)
def test_any_text_survives_csv(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("csv")
    with (folder / "log.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("user_id", "item_id", "timestamp"), *rows])
    missing = {"", "nan", "NaN", "NAN", "NaT", "null", "NULL", "None", "<NA>", "\\N", "#N/A"}
    expected = [tuple(None if v.strip() in missing else v for v in row) for row in rows]
    assert records(events(config(folder, quoting="doubled")), *EVENTS[:3]) == expected


@given(st.lists(st.one_of(st.none(), st.integers(-(2**52), 2**52)), min_size=1))
def test_whole_floats_are_spelled_as_integers(values):
    spelled = spelling.spell(pa.array(values, pa.float64())).to_pylist()
    assert spelled == [None if v is None else str(v) for v in values]


def test_floats_that_are_no_number_are_missing_and_fractions_stay():
    column = pa.array([float("nan"), float("inf"), 2.5], pa.float64())
    assert spelling.spell(column).to_pylist() == [None, None, "2.5"]


@given(st.datetimes(min_value=datetime(1900, 1, 1), max_value=datetime(2200, 1, 1)))
def test_times_are_whole_seconds_rounded_down(when):
    seconds = (when - datetime(1970, 1, 1)) // timedelta(seconds=1)
    assert spelling.spell_time(pa.array([when], pa.timestamp("us"))).to_pylist() == [str(seconds)]


def test_zoned_times_are_read_in_utc():
    when = [datetime(2020, 1, 1, tzinfo=UTC)]
    zoned = pa.array(when, pa.timestamp("ms", tz="Europe/Berlin"))
    assert spelling.spell_time(zoned).to_pylist() == ["1577836800"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("user,item_id,timestamp\n1,2,3\n", "did you mean 'user'"),
        ("user_id,item_id,zzz\n1,2,3\n", "It has: user_id, item_id, zzz"),
        ("user_id,item_id,item_id,timestamp\n1,2,2,3\n", "'item_id' occurs more than once"),
        ('user_id,item_id,timestamp\n1,"2,3\n' + "x" * 140_000, "starts in line 2.*never closed"),
    ],
)
def test_unreadable_csv_is_one_clear_error(tmp_path, content, message):
    (tmp_path / "log.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        events(config(tmp_path))


def test_text_that_is_not_utf8_is_a_clear_error(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"user_id,item_id,timestamp\n\xe9,2,3\n")
    with pytest.raises(UserError, match="not UTF-8"):
        events(config(tmp_path))


def test_missing_file_names_the_fix(tmp_path):
    with pytest.raises(UserError, match=r"ratings\.dat.*run: hpgr fetch"):
        read_raw(config(tmp_path, format="movielens-1m").data, 1000)
    with pytest.raises(UserError, match=r"correct data\.path"):
        read_raw(config(tmp_path).data, 1000)


def test_text_called_parquet_is_a_clear_error(tmp_path):
    (tmp_path / "log.parquet").write_text("user_id\n")
    with pytest.raises(UserError, match="is not a whole Parquet file"):
        read_raw(config(tmp_path, interactions="log.parquet").data, 1000)


def test_parquet_column_of_a_strange_type_is_a_clear_error(tmp_path):
    table = pa.table({"user_id": [{"a": 1}], "item_id": [1], "timestamp": [1]})
    pq.write_table(table, tmp_path / "log.parquet")
    with pytest.raises(UserError, match="column 'user_id' has type struct"):
        events(config(tmp_path, interactions="log.parquet"))
