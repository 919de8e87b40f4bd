"""The doctor's advice on times, followed to the letter; the oracle is the moment spelled out."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy
import pandas
import pytest

from hpgr.intake import time_units as times


def seconds(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp())


MOMENT = seconds(2020, 9, 13, 12, 26, 40)
DAY = seconds(2020, 12, 31)


def advice_on(values: list[str]) -> str:
    present = pandas.Series(values, dtype="str")
    (shape,) = times.shapes(present).unique()
    return times.FIXES.get(shape) or times.advice(times.kinds_of_dates(present))


def followed(values: list[str]) -> list[int | None]:
    """Result of the advised expression on the column, which has an empty cell at its end."""
    advice = advice_on(values)
    assert "convert it" in advice or "cut the fraction off" in advice
    column = pandas.Series([*values, ""], dtype="str")
    found = eval(advice.split(": ", 1)[1], {"pandas": pandas, "numpy": numpy, "column": column})
    text = found.to_csv(index=False, header=False).split("\n")
    assert text[len(values)] in ("", '""')  # an empty time stays empty
    return [int(one) for one in text[: len(values)]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["2020-09-13T12:26:40Z", "2020-09-13T12:26:40.5Z"], [MOMENT, MOMENT]),
        (["2020-09-13 12:26:40", "2020-09-13 14:26:40.123456+02:00"], [MOMENT, MOMENT]),
        (["2020-09-13T12:26:40+0000", "2020-12-31"], [MOMENT, DAY]),
        (["1969-12-31T23:59:59.5Z"], [-1]),
        (["20200913T122640Z"], [MOMENT]),
        (["2020-09-13 12:26:40 UTC"], [MOMENT]),
        (["2020/09/13 12:26:40", "2020/12/31 00:00:00"], [MOMENT, DAY]),
        (["2020-09-13 12:26 PM"], [MOMENT - 40]),
        (["31/12/2020", "03/04/2020"], [DAY, seconds(2020, 4, 3)]),
        (["12/31/2020", "03/04/2020"], [DAY, seconds(2020, 3, 4)]),
        (["31.12.2020 00:00", "03.04.2020"], [DAY, seconds(2020, 4, 3)]),
        (["31/12/20", "3/4/20"], [DAY, seconds(2020, 4, 3)]),
        (["12/31/2020 12:00 AM", "3/4/2020 1:02 PM"], [DAY, seconds(2020, 3, 4, 13, 2)]),
        (["03/04/2020 10:00", "31/12/2020 00:00:00.25"], [seconds(2020, 4, 3, 10), DAY]),
        (["2020-31-12"], [DAY]),
        (["31 Dec 2020", "3 May 2020"], [DAY, seconds(2020, 5, 3)]),
        (["Dec 31, 2020 12:00 AM"], [DAY]),
        (["13/Sep/2020:14:26:40 +0200"], [MOMENT]),
        (["Sun Sep 13 12:26:40 +0000 2020"], [MOMENT]),
        (["1600000000.25", "-0.5"], [1600000000, -1]),
        (["1600000000123.5"], [1600000000]),
        (["44087.5"], [seconds(2020, 9, 13, 12)]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_the_advice_is_right_when_followed_to_the_letter(values, expected):
    assert followed(values) == expected


def test_day_and_month_that_cannot_be_distinguished_are_reported():
    advice = advice_on(["03/04/2020", "01/02/2020"])
    assert "cannot be told apart" in advice and "'03/04/2020'" in advice
    assert "format='%d/%m/%Y'" in advice and "format='%m/%d/%Y'" in advice


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["31/12/2020", "12/31/2020"], "some put the day first"),
        (["2020-03-04", "31/12/2020"], "several ways"),  # dayfirst would turn the first around
        (["2020-09-13T12:26:40Z[Europe/Berlin]"], "write '2020-09-13T12:26:40Z[Europe/Berlin]'"),
        (["31/12/2020 24:00"], "write dates such as"),
    ],
)
def test_no_expression_is_given_where_none_is_right(values, words):
    advice = advice_on(values)
    assert words in advice and "to_datetime" not in advice


@pytest.mark.parametrize("value", ["yesterday", "12:26:40", "1,600,000,000", "may", "31"])
def test_what_is_no_date_is_not_called_one(value):
    assert "a date" not in times.shapes(pandas.Series([value], dtype="str")).tolist()
