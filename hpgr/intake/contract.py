"""The table contract: names of the columns, and the rules for every row, table and batch.

A rule is plain data, written once: `expectations.py` checks it with Great Expectations,
`validate.py` quarantines by it, `doctor.py` explains it line by line. Imports neither Great
Expectations nor anything that reads files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from hpgr.config import Validate


USER, ITEM, TIMESTAMP, ACTION, SESSION = "user_id", "item_id", "timestamp", "action", "session_id"
EVENT_COLUMNS = (USER, ITEM, TIMESTAMP, ACTION, SESSION)
REQUIRED = (USER, ITEM, TIMESTAMP)
TITLE, CATEGORIES = "title", "categories"
IMPRESSION, POSITION, LABEL = "impression_id", "position", "label"
SHOWN_COLUMNS = (IMPRESSION, USER, ITEM, TIMESTAMP, POSITION, LABEL)
# Roles of tables; those of items and users are their id columns.
EVENTS, IMPRESSIONS = "events", "impressions"
ROW = "row"  # number of the row in the log, from 0, counted through all increments
PART = "part"  # which file of events the row is from: 0 the base, then the increments in order
ITEM_KNOWN = "item_known"  # of a row as `prepare` makes it; missing where nothing is checked
UNKNOWN_ITEM = "item is not in the items table"
SOURCE = "source"  # number of the file that a row is from
LINE = "line"  # line of the text file, from 1; of Parquet the row, from 1
RAGGED = "ragged"  # what is wrong with a line's number of fields; missing where it is right

# What programs write for "no value". An id spelled like one of these counts as missing.
MISSING_WORDS = ("", "nan", "NaN", "NAN", "NaT", "null", "NULL", "None", "<NA>", "\\N", "#N/A")

WHOLE_NUMBER = r"^-?[0-9]+(?:\.0*)?$"
# 10^11 seconds is the year 5138, 10^11 milliseconds is 1973: no real log is on the wrong side.
MILLISECONDS_FROM = 10**11


@dataclass(frozen=True)
class Rule:
    """One expectation, with the words that explain it to a person.

    Attributes:
        name: the reason in the quarantine.
        column: the contract's column that it is about.
        expected: what a good value is.
        fix: what to do about a bad one.
        check: Great Expectations' type.
        arguments: of that type.
        gate: a breach of a batch rule fails the stage.
    """

    name: str
    column: str
    expected: str
    fix: str
    check: str
    arguments: dict[str, Any] = field(default_factory=dict)
    gate: bool = True


FIELDS_RULE = Rule(
    name="wrong number of fields",
    column=RAGGED,
    expected="as many fields as every line has",
    fix="quote values that hold the separator, and remove stray line breaks",
    check="expect_column_values_to_be_null",
    arguments={"column": RAGGED},
)

# Batches may overlap: a row of an earlier one is left out, but is no fault of this one.
REPEATED_RULE = Rule(
    name="event of an earlier batch",
    column=ROW,
    expected="an event that no earlier batch brought",
    fix="nothing needs to be done: the first one counts",
    check="expect_column_values_to_be_in_set",
    arguments={"column": "is_repeated", "value_set": [False]},
    gate=False,
)


# The first of several equal events is kept: the others are left out, but are no fault.
COPY_RULE = Rule(
    name="exact duplicate",
    column=ROW,
    expected="user, item, timestamp and action together only once",
    fix="nothing needs to be done: one of them counts",
    check="expect_column_values_to_be_in_set",
    arguments={"column": "is_copy", "value_set": [False]},
    gate=False,
)


def between(
    name: str,
    column: str,
    expected: str,
    fix: str,
    *,
    least: float | None = None,
    most: float | None = None,
    values: str | None = None,
    gate: bool = True,
) -> Rule:
    """A rule that keeps a number within limits; `values` is the column checked if not `column`."""
    limits = {"min_value": least, "max_value": most}
    given = {key: value for key, value in limits.items() if value is not None}
    arguments = {"column": values or column, **given}
    check = "expect_column_values_to_be_between"
    return Rule(name, column, expected, fix, check, arguments, gate)


def row_rules(limits: Validate, items_file: Path | None = None) -> tuple[Rule, ...]:
    """Rules for every event; `prepare` makes the columns that they check.

    `items_file` names the file that lists the items, if there is one.
    """
    items = items_file or "the items file"
    return (
        FIELDS_RULE,
        *map(not_missing, REQUIRED),
        *time_rules(limits),
        COPY_RULE,
        REPEATED_RULE,
        Rule(
            name=UNKNOWN_ITEM,
            column=ITEM,
            expected=f"an id that {items} lists",
            fix=f"add the item to {items}, or set data.items to null",
            check="expect_column_values_to_be_in_set",
            arguments={"column": ITEM_KNOWN, "value_set": [True]},
        ),
    )


def not_missing(column: str) -> Rule:
    """A rule for a column of ids, times or labels in which every row has a value."""
    return Rule(
        name=f"{column} is missing",
        column=column,
        expected="a value" if column in (TIMESTAMP, LABEL) else "an id, any text or number",
        fix="fill it in, or drop the row",
        check="expect_column_values_to_not_be_null",
        arguments={"column": column},
    )


def time_rules(limits: Validate) -> tuple[Rule, ...]:
    """Rules for a time; `with_seconds` makes the columns that they check."""
    return (
        Rule(
            name="timestamp is not a whole number",
            column=TIMESTAMP,
            expected="whole seconds since 1970-01-01 UTC, such as 978300760",
            fix="convert dates and fractions to whole epoch seconds",
            check="expect_column_values_to_match_regex",
            arguments={"column": TIMESTAMP, "regex": WHOLE_NUMBER},
        ),
        between(
            name="timestamp is in milliseconds or finer",
            column=TIMESTAMP,
            expected=f"seconds, below {MILLISECONDS_FROM:,}",
            fix="divide by 1000 (milliseconds), 1000000 (microseconds) or 1000000000 "
            "(nanoseconds), rounding down: column // 1000",
            most=MILLISECONDS_FROM - 1,
            values="seconds",
        ),
        between(
            name="timestamp is too early",
            column=TIMESTAMP,
            expected=f"at least {limits.min_timestamp} (validate.min_timestamp)",
            fix="correct the unit or the clock, or lower validate.min_timestamp",
            least=limits.min_timestamp,
            values="seconds",
        ),
        between(
            name="timestamp is in the future",
            column=TIMESTAMP,
            expected=f"at most now + {limits.max_timestamp_ahead_s} s",
            fix="correct the clock or the time zone, or raise validate.max_timestamp_ahead_s",
            most=limits.max_timestamp_ahead_s,
            values="ahead_s",
        ),
    )


def batch_rules(limits: Validate) -> tuple[Rule, ...]:
    """Rules for a log as a whole, checked on one row of numbers that `validate.py` makes."""
    change = limits.max_volume_change
    rules = [
        between(
            name="no row is accepted",
            column="rows_accepted",
            expected="at least 1 accepted row",
            fix="see the reasons in the quarantine",
            least=1,
        ),
        between(
            name="share of quarantined rows",
            column="quarantined_share",
            expected=f"at most {limits.max_bad_share} (validate.max_bad_share)",
            fix="correct the rows (hpgr doctor FILE lists them), or raise the limit",
            most=limits.max_bad_share,
        ),
        between(
            name="rows against the last accepted batch",
            column="volume_change",
            expected=f"a change of at most {change} either way (validate.max_volume_change)",
            fix="look for a lost or doubled part of the log, or raise the limit",
            least=-change,
            most=change,
        ),
        between(
            name="newest event against the last accepted batch",
            column="seconds_behind",
            expected="not older than the newest event accepted before",
            fix="look for an old copy of the log",
            most=0,
        ),
        between(
            name="users without a row in the users table",
            column="users_without_features",
            expected="none",
            fix="nothing needs to be done: their features are taken as unknown",
            most=0,
            gate=False,
        ),
    ]
    if limits.max_age_days is not None:
        rules.append(
            between(
                name="age of the newest event",
                column="days_old",
                expected=f"at most {limits.max_age_days} days (validate.max_age_days)",
                fix="fetch newer events, or set the limit to null for historic data",
                most=limits.max_age_days,
            )
        )
    return tuple(rules)


def table_rules(key: str, file: str) -> tuple[Rule, ...]:
    """Rules for a table of items or users: `key` is its id column, `file` its source."""
    return (
        Rule(
            name=f"{key} is missing",
            column=key,
            expected="an id in every row",
            fix=f"fill it in, or drop the row of {file}",
            check="expect_column_values_to_not_be_null",
            arguments={"column": key},
        ),
        Rule(
            name=f"{key} occurs more than once",
            column=key,
            expected="one row for each id",
            fix=f"merge or drop the repeated rows of {file}",
            check="expect_column_values_to_be_unique",
            arguments={"column": key},
        ),
    )


def prepare(
    chunk: pd.DataFrame,
    *,
    now: int,
    copies: np.ndarray,
    repeated: np.ndarray,
    known_items: pd.Index | None,
) -> pd.DataFrame:
    """`chunk` with the columns that the row rules check.

    Args:
        chunk: raw events as strings, with `row`; see `raw_log.py`.
        now: seconds since 1970. The rules see times as a distance from it, so that neither they
            nor their results depend on the day of the run unless a row does.
        copies: sorted row numbers that repeat an earlier row of their own file, int64.
        repeated: sorted row numbers that repeat a row of an earlier file, int64.
        known_items: ids of the items table; None where there is none.
    """
    # A missing value breaks no rule: without an items table nothing is checked, and the not-null
    # rule reports missing ids.
    known = None
    if known_items is not None:
        known = chunk[ITEM].isin(known_items).where(chunk[ITEM].notna())
    return with_seconds(chunk, now).assign(
        is_copy=among(copies, chunk[ROW].to_numpy()),
        is_repeated=among(repeated, chunk[ROW].to_numpy()),
        item_known=known,
    )


def with_seconds(chunk: pd.DataFrame, now: int) -> pd.DataFrame:
    """`chunk` with the columns that the rules for times check; `now` is in seconds since 1970."""
    text = chunk[TIMESTAMP].where(chunk[TIMESTAMP].str.fullmatch(WHOLE_NUMBER).fillna(False))
    seconds = text.astype("float64")  # not by way of an integer: 5,000 digits become infinite
    ahead_s = (seconds - now).where(seconds < MILLISECONDS_FROM)
    return chunk.assign(seconds=seconds, ahead_s=ahead_s)


def among(ordered: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """True for each of `rows` that is in `ordered`, which is sorted."""
    return np.append(ordered, -1)[np.searchsorted(ordered, rows)] == rows


def join_reasons(found: dict[str, np.ndarray], rules: Sequence[Rule], length: int) -> np.ndarray:
    """Reasons of each of `length` rows, joined with "; " in the order of `rules`; "" if none.

    `found` gives the positions of the rows that break each rule.
    """
    reasons = np.full(length, "", dtype=object)
    for rule in rules:
        rows = found.get(rule.name, np.array([], dtype=np.int64))
        reasons[rows] = [f"{r}; {rule.name}" if r else rule.name for r in reasons[rows]]
    return reasons
