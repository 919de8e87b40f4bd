"""Ratings: the numbers in the text of actions, and the labels that follow from them.

Reads and writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpgr.config import Sessionize


ZEROS_AT_THE_END = r"^([+-]?[0-9]+)(?:\.0+|(\.[0-9]*[1-9])0+)$"
# Digits of any script, for which float() stands; it would also take 1_000, inf and nan.
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
COMMA = re.compile(r"[+-]?\d+,\d+")
THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+")
LARGE_SHARE = 0.01  # of the events with an action
EXAMPLES = 5


def numbers(actions: Iterable[str]) -> dict[str, float]:
    """The number of each action that is a number.

    A comma is a decimal point if no number has a point and some comma cannot separate thousands, as
    in 4,5. `5 stars`, `80%` and `4/5` are not numbers.
    """
    texts = {action: action.strip() for action in actions}
    found = {a: float(text) for a, text in texts.items() if NUMBER.fullmatch(text)}
    commas = {action: text for action, text in texts.items() if COMMA.fullmatch(text)}
    with_point = any("." in texts[action] for action in found)
    if not with_point and any(not THOUSANDS.fullmatch(text) for text in commas.values()):
        found |= {action: float(text.replace(",", ".")) for action, text in commas.items()}
    return found


def labels(actions: Sequence[str | None], settings: Sessionize) -> list[int]:
    """1 for each action that makes an event a positive example, 0 for the others.

    All are positive if nothing is set, and in a log without any action.
    """
    nothing_set = settings.positive_from is None and settings.positive_actions is None
    if nothing_set or all(action is None for action in actions):
        return [1] * len(actions)
    listed = settings.positive_actions or ()  # 5.0 is spelled 5 in a log
    chosen = {*listed, *(re.sub(ZEROS_AT_THE_END, r"\1\2", word) for word in listed)}
    if settings.positive_from is not None:
        found = numbers(action for action in actions if action is not None)
        chosen |= {action for action, number in found.items() if number >= settings.positive_from}
    return [int(action in chosen) for action in actions]


def unread(events: Mapping[str, int], settings: Sessionize) -> tuple[str, str, str] | None:
    """Found, expected and fix if many actions should be numbers and are not; None otherwise.

    Args:
        events: number of events with each action.
        settings: `positive_from` needs numbers; `positive_actions` lists words.
    """
    if settings.positive_from is None or settings.positive_actions is not None:
        return None
    known = numbers(events)
    words = [action for action in events if action not in known]
    count, total = sum(events[word] for word in words), sum(events.values())
    if not count or count < LARGE_SHARE * total:
        return None
    shown = ", ".join(repr(word) for word in words[:EXAMPLES])
    return (
        f"{count:,} of {total:,} events with an action ({count / total:.1%}) have {shown}"
        + (", ..." if len(words) > EXAMPLES else ""),
        f"numbers: sessionize.positive_from is {settings.positive_from:g}",
        "they count as not positive; list the words that are in sessionize.positive_actions, "
        "or write the numbers alone",
    )
