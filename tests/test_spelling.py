"""One spelling for each value; the oracles are numpy, decimal, and values spelled out."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpgr.intake import list_cells, spelling


def spelled(column: pa.Array) -> list[str | None]:
    return spelling.spell(column).to_pylist()


@given(st.lists(st.floats(2**-10, 2**10, width=32), min_size=1))
def test_floats_of_32_bits_are_as_short_as_their_type_allows(values):
    column = pa.array(values, pa.float32())
    for text, value in zip(spelled(column), values, strict=True):
        assert np.float32(text) == np.float32(value)
        assert len(text) <= len(str(np.float32(value)))


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_a_rating_is_what_was_written_in_any_width(kind):
    assert spelled(pa.array([4.1, 5.0, 0.5, None], kind)) == ["4.1", "5", "0.5", None]


@given(st.decimals(-(10**9), 10**9, places=3))
def test_decimals_lose_the_zeros_at_their_end_and_nothing_else(value):
    (text,) = spelled(pa.array([value], pa.decimal128(20, 3)))
    assert Decimal(text) == value
    assert "e" not in text.lower() and not ("." in text and text[-1] in "0.")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
        (pa.array([True]), "true"),
        (pa.array([date(2020, 1, 2)]), "2020-01-02"),
        (pa.array([datetime(2020, 1, 2, 3, 4, 5, 6)]), "2020-01-02 03:04:05.000006"),
        (pa.array(["a"]).cast(pa.string_view()), "a"),
        (pa.array(["a"], pa.large_string()), "a"),
        (pa.array(["a"]).dictionary_encode(), "a"),
        (pa.array([b"a"]), "a"),
        (pa.array([UUID(int=5).bytes], pa.uuid()), "00000000-0000-0000-0000-000000000005"),
        (pa.nulls(1), None),
        (pa.RunEndEncodedArray.from_arrays([1], ["a"]), "a"),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_each_type_has_its_spelling(column, expected):
    assert spelled(column) == [expected]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([[0.1, 4.1]], pa.list_(pa.float32())), "[0.1, 4.1]"),
        (pa.array([[0.1, 4.1]], pa.list_(pa.float32(), 2)), "[0.1, 4.1]"),
        (pa.array([{"a": 1, "b": "é"}]), '{"a": 1, "b": "é"}'),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())), '{"k": 1}'),
        (pa.array([b"\xff\x01"]), "ff01"),
        (pa.array([b"\xff\x01"], pa.binary(2)), "ff01"),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_what_is_no_plain_value_is_written_as_json_or_hex(column, expected):
    text, written = spelling.spell_any(column)
    assert text.to_pylist() == [expected]
    assert written in ("JSON", "hex digits")


@pytest.mark.parametrize(
    ("column", "lost"),
    [
        (pa.array([2.0**53 - 1]), False),
        (pa.array([1.0, 2.0**53]), True),
        (pa.array([float("nan"), float("inf"), None]), False),
        (pa.array([2.0**24 - 1], pa.float32()), False),
        (pa.array([-(2.0**24)], pa.float32()), True),
        (pa.array([2**62]), False),
    ],
)
def test_floats_beyond_what_they_hold_exactly_are_known(column, lost):
    assert bool(spelling.lost_digits(column)) is lost


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["5.0", "12.0", None], ["5", "12", None]),
        (["5.0", "12"], ["5", "12"]),
        (["5.0", "1.1"], ["5.0", "1.1"]),
        (["5.0", "x"], ["5.0", "x"]),
        (["007.0", "5.0"], ["007.0", "5.0"]),
        (["1.00", "2"], ["1", "2"]),
        (["1e3", "5.0"], ["1e3", "5.0"]),
        (["1.5e+18", "x"], ["1.5e+18", "x"]),
    ],
)
def test_ids_lose_their_point_where_all_are_whole_numbers(ids, expected):
    found = spelling.whole_numbers(pd.Series(ids, dtype="str"))
    assert [None if pd.isna(one) else one for one in found] == expected


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([[0, 3], [0.0, 3.0], None], [["0", "3"], ["0", "3"], []]),
        ([[None, "x", "", "x"], ["nan"]], [["x"], []]),
        ([[b"a", b"\xff"], [True], [["a"], ["b"]]], [["a", "ff"], ["true"], ["a", "b"]]),
        ([[{"id": 1, "name": "A"}, {"id": 2, "name": "B"}]], [["A", "B"]]),
        (["['Drama', 'War']", None], [["Drama", "War"], []]),
        (['["Drama","War"]', "[]"], [["Drama", "War"], []]),
        (["['Drama' 'Sci Fi']", "['War']"], [["Drama", "Sci Fi"], ["War"]]),
        (["[0 3]", "[0. 3.]", "[2.]"], [["0", "3"], ["0", "3"], ["2"]]),
        (["[Drama, Sci Fi]", "[Sci Fi]"], [["Drama", "Sci Fi"], ["Sci Fi"]]),
        (['{Drama,"Sci, Fi"}'], [["Drama", "Sci, Fi"]]),
        (["('a',)", "{'b', 'a'}"], [["a"], ["b", "a"]]),
        (["[{'id': 16, 'name': 'Animation'}]"], [["Animation"]]),
        (["a| b ||b|", "nan|3.0|0"], [["a", "b"], ["3", "0"]]),
        (["1.0|1.1"], [["1.0", "1.1"]]),
        (["[Remastered]|x", "Live"], [["[Remastered]", "x"], ["Live"]]),
    ],
)
def test_cells_of_several_values(column, expected):
    found, _ = list_cells.split(pd.Series(column, dtype=object), "|")
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["['a', 'b']", "['c']"], "is read as lists"),
        (["a|b", "['c', 'd']"], "1 of 2 cells are written as lists"),
        (["a|b", "[Remastered]"], None),
        ([["a"], ["b"]], None),
    ],
)
def test_text_that_is_or_may_be_lists_is_noted(column, words):
    _, note = list_cells.split(pd.Series(column, dtype=object), "|")
    assert (words in note) if words else note is None


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8"), min_size=1)), min_size=1))
def test_lists_that_python_wrote_as_text_are_those_lists(rows):
    kept = [list(dict.fromkeys(one.strip() for one in row if one.strip())) for row in rows]
    kept = [[one for one in row if not one.replace(".", "").isdigit()] for row in kept]
    known = [[one for one in row if spelling.spell_value(one)] for row in kept]
    found, _ = list_cells.split(pd.Series([repr(row) for row in known], dtype=object), "|")
    assert found.tolist() == known
