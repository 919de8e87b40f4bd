"""Labels: the actions that make an event positive, and if a ranking can be learned from them.

An action is positive by the number in its text (a rating) or by name. Where one label is too rare
the model only retrieves: `hpgr doctor` reports that before a run, the sessionize stage when it
decides (`can_rank` of `hpgr.data.log.Meta`), both with advice on naming a positive.
Reads and writes nothing.
"""

from __future__ import annotations

import math
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
SHOWN = 5  # actions in a message
# Words for what a shop or a player wants to happen; they come first in the advice.
WANTED = (
    *("buy", "bought", "purchase", "purchased", "order", "ordered", "transaction", "checkout"),
    *("conversion", "booking", "clickout", "like", "liked", "love", "loved", "favorite"),
    *("favourite", "save", "saved", "finish", "finished", "complete", "completed", "subscribe"),
    *("cart", "addtocart"),
)

Counts = Mapping[str | None, int]  # events by action; None is an event without one


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


def action_values(actions: Sequence[str], settings: Sessionize) -> list[float]:
    """Value each action by its number if all are numbers, else by its label."""
    found = numbers(actions)
    if len(found) == len(actions):
        return [found[action] for action in actions]
    return [float(label) for label in labels(actions, settings)]


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
    shown = ", ".join(repr(word) for word in words[:SHOWN])
    return (
        f"{count:,} of {total:,} events with an action ({count / total:.1%}) have {shown}"
        + (", ..." if len(words) > SHOWN else ""),
        f"numbers: sessionize.positive_from is {settings.positive_from:g}",
        "they count as not positive; list the words that are in sessionize.positive_actions, "
        "or write the numbers alone",
    )


def can_rank(positives: int, events: int, settings: Sessionize) -> bool:
    """Return True if the rarer label has enough of all `events` to train a ranking head."""
    return min(positives, events - positives) >= _least(events, settings)


def positives(counts: Counts, settings: Sessionize) -> int:
    """Number of events with label 1; all events in a log without any action."""
    found = labels(list(counts), settings)
    return sum(n for n, label in zip(counts.values(), found, strict=True) if label)


def finding(positives: int, events: int, counts: Counts, settings: Sessionize) -> tuple[str, str]:
    """The reason that no ranking can be learned from a log, and advice on naming a positive.

    Args:
        positives: events with label 1.
        events: all events.
        counts: events by action.
        settings: the values in force.
    """
    if positives in (0, events):
        found = f"all {events:,} events are {'positive' if positives else 'negative'}"
    else:
        rarer = min(positives, events - positives)
        found = (
            f"{rarer:,} of {events:,} events are "
            f"{'positive' if rarer == positives else 'negative'}, at least "
            f"{_least(events, settings):,} are needed (sessionize.min_label_events, "
            "min_label_share)"
        )
    return found, _advice(counts, settings)


def _least(events: int, settings: Sessionize) -> int:
    return max(settings.min_label_events, math.ceil(settings.min_label_share * events))


def _advice(counts: Counts, settings: Sessionize) -> str:
    """Advice on naming a positive among the actions of the log."""
    names = sorted((name for name in counts if name is not None), key=lambda n: (-counts[n], n))
    if not names:
        return (
            "the log has no actions, each event is a plain click; where a column says what was "
            "liked or bought, name it in data.columns.action"
        )
    seen = ", ".join(f"{name} ({counts[name]:,})" for name in names[:SHOWN])
    more = ", ..." if len(names) > SHOWN else ""
    now = (
        f"the actions are {seen}{more}; positive_from is {_plain(settings.positive_from)}, "
        f"positive_actions is {_words(settings.positive_actions)}"
    )
    if len(names) == 1 and None not in counts:
        return f"{now}, and a single action distinguishes nothing"
    choices = _numeric(names, counts) or _verbal(names, counts)
    events = sum(counts.values())
    enough = [key for key, positives in choices.items() if can_rank(positives, events, settings)]
    if enough:
        return f"{now}. For a ranking set, for example, {enough[0]}"
    return (
        f"{now}. No value of them leaves {_least(events, settings):,} events of either label; with "
        f"more events set, for example, {next(iter(choices))}"
    )


def _numeric(names: list[str], counts: Counts) -> dict[str, int]:
    """Settings to try and their positives, the most even division of the events first.

    Empty if an action is a word.
    """
    found = numbers(names)
    if len(found) < len(names):
        return {}
    values, events = sorted(set(found.values())), sum(counts.values())
    lowest = 0 if None in counts else 1  # from the lowest on every event would be positive
    positives = {
        least: sum(counts[name] for name in names if found[name] >= least)
        for least in values[lowest:] or values
    }
    ordered = sorted(positives, key=lambda least: abs(positives[least] / events - 0.5))
    return {f"sessionize.positive_from: {_plain(least)}": positives[least] for least in ordered}


def _verbal(names: list[str], counts: Counts) -> dict[str, int]:
    """Settings to try and their positives: wanted words first, then the rarest actions."""
    words = {name: re.findall(r"[^\W\d_]+", name.casefold()) for name in names}
    wanted = [name for word in WANTED for name in names if word in words[name]]
    ordered = dict.fromkeys([*wanted, *reversed(names)])
    return {f"sessionize.positive_actions: [{name}]": counts[name] for name in ordered}


def _plain(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def _words(actions: tuple[str, ...] | None) -> str:
    return f"[{', '.join(actions)}]" if actions else "null"
