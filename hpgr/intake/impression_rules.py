"""The contract of impressions: rules for a shown item and for the list that it was shown in.

A list is what one user was shown at one time; its rows share an impression id. Where a row of it
breaks a rule, the list is no longer what was shown (the row may be the click), so
`impression_screening.py` leaves out all of it. Shown items need not be in the items table: a list
with gaps would be another list. Imports neither Great Expectations nor anything that reads files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpgr.intake.contract import (
    FIELDS_RULE,
    IMPRESSION,
    IMPRESSIONS,
    ITEM,
    LABEL,
    POSITION,
    TIMESTAMP,
    USER,
    Rule,
    between,
    not_missing,
    time_rules,
)

if TYPE_CHECKING:
    from hpgr.config import Validate

LABEL_TEXT = r"^(?:[01](?:\.0*)?|[Tt]rue|[Ff]alse|TRUE|FALSE)$"
POSITION_TEXT = r"^[0-9]{1,9}(?:\.0*)?$"
IN_A_BAD_LIST = "another row of the impression is bad"

SHOWN_AGAIN_RULE = Rule(
    name="item shown again in the impression",
    column=ITEM,
    expected="each item of an impression once",
    fix="nothing needs to be done: the first one counts",
    check="expect_column_values_to_be_in_set",
    arguments={"column": "shown_again", "value_set": [False]},
    gate=False,
)


def _of_list(name: str, flag: str, expected: str, fix: str) -> Rule:
    """A rule that all rows of a list break together; `flag` is the column that says so."""
    arguments = {"column": flag, "value_set": [False]}
    return Rule(name, IMPRESSION, expected, fix, "expect_column_values_to_be_in_set", arguments)


LIST_RULES = {
    "several_users": _of_list(
        "impression of several users",
        "several_users",
        "one user in all rows of an impression",
        "give each list that was shown an id of its own, also across files",
    ),
    "several_times": _of_list(
        "impression at several times",
        "several_times",
        "one time in all rows of an impression: when the list was shown",
        "give each list that was shown an id of its own, and its rows the time it was asked for",
    ),
    "both_labels": _of_list(
        "item with both labels in the impression",
        "both_labels",
        "one label for each item of an impression",
        "write an item that was taken once, with label 1",
    ),
}


def shown_rules(limits: Validate, *, positions: bool) -> tuple[Rule, ...]:
    """Rules for every shown item; `positions` says that the table has a column of them."""
    place = Rule(
        name="position is not a whole number",
        column=POSITION,
        expected="a place in the list, a whole number such as 0, 1, 2",
        fix="number the items as they were shown, or set data.columns.position to null",
        check="expect_column_values_to_match_regex",
        arguments={"column": POSITION, "regex": POSITION_TEXT},
    )
    return (
        FIELDS_RULE,
        *map(not_missing, (IMPRESSION, USER, ITEM, TIMESTAMP, LABEL)),
        *((not_missing(POSITION), place) if positions else ()),
        *time_rules(limits),
        Rule(
            name="label is not 0 or 1",
            column=LABEL,
            expected="1 where the item was taken, 0 where it was passed over",
            fix="write 0 or 1 (true and false are read as well)",
            check="expect_column_values_to_match_regex",
            arguments={"column": LABEL, "regex": LABEL_TEXT},
        ),
        *LIST_RULES.values(),
        SHOWN_AGAIN_RULE,
    )


def impressions_rules(limits: Validate) -> tuple[Rule, ...]:
    """Rules for the impressions as a whole, checked on the figures of `ShownCounts`."""
    return (
        between(
            name="no impression is accepted",
            column="impressions_accepted",
            expected=f"at least 1 accepted list of {IMPRESSIONS}",
            fix="see the reasons in the quarantine of the impressions",
            least=1,
        ),
        between(
            name="share of impression rows left out",
            column="impressions_left_out",
            expected=f"at most {limits.max_bad_share} (validate.max_bad_share)",
            fix="correct the rows (hpgr doctor FILE lists them): one bad row takes its list with "
            "it; or raise the limit",
            most=limits.max_bad_share,
        ),
    )
