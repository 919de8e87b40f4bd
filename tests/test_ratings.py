"""Numbers that actions stand for, and the labels they lead to; spelled out by hand."""

from __future__ import annotations

import pytest
from sample_log import TESTED

from hpgr.config import Sessionize
from hpgr.data.labels import labels, numbers, unread


def settings(**changes) -> Sessionize:
    return Sessionize(**{**TESTED, "positive_from": 4, "positive_actions": None, **changes})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[("5", 5), ("4.5", 4.5), (" 5 ", 5), ("+5", 5), ("-1", -1), (".5", 0.5), ("5.", 5)],
        *[("1e1", 10), ("٣", 3), ("4,5", 4.5), ("1000,25", 1000.25)],
        *[("5 stars", None), ("4/5", None), ("80%", None), ("★★★★", None), ("view", None)],
        *[("1_000", None), ("nan", None), ("inf", None), ("", None), ("1,000", None)],
        *[("1.234,5", None), ("1,234,567", None), ("0x10", None)],
    ],
)
def test_a_number_is_read_where_it_is_unambiguous(text, number):
    assert numbers([text]).get(text) == number


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["4,5", "1,250"], {"4,5": 4.5, "1,250": 1.25}),  # 4,5 shows what a comma is
        (["4.5", "4,5"], {"4.5": 4.5}),
        (["5", "2,0"], {"5": 5, "2,0": 2}),
        (["1,000", "2,500"], {}),
    ],
)
def test_a_comma_is_a_decimal_point_where_the_whole_column_says_so(column, expected):
    assert numbers(column) == expected


def test_labels_of_decimal_commas_are_those_of_their_numbers():
    assert labels(["5", "4,5", "2,0", None], settings()) == [1, 1, 0, 0]


def test_a_positive_action_may_be_spelled_as_the_log_spells_it():
    chosen = settings(positive_from=None, positive_actions=("5.0",))
    assert labels(["5", "4"], chosen) == [1, 0]


@pytest.mark.parametrize(
    ("events", "changes", "share"),
    [
        ({"5 stars": 30, "5": 70}, {}, "30 of 100"),
        ({"view": 50, "buy": 50}, {}, "100 of 100"),
        ({"5": 1000, "?": 1}, {}, None),
        ({"5": 10}, {}, None),
        ({}, {}, None),
        ({"view": 50}, {"positive_from": None}, None),
        ({"view": 50, "buy": 2}, {"positive_actions": ("buy",)}, None),
    ],
)
def test_actions_that_should_be_numbers_and_are_not_are_counted(events, changes, share):
    found = unread(events, settings(**changes))
    if share is None:
        assert found is None
    else:
        assert found is not None
        assert share in found[0] and repr(next(iter(events))) in found[0]
        assert "positive_actions" in found[2]
