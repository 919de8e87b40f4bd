"""Labels: the number of positive events, and the decision if a ranking can be learned from them.

If it cannot, the model only retrieves. `hpgr doctor` reports that before a run, the sessionize
stage when it decides (`can_rank` of `hpgr.data.log.Meta`), both with advice on naming a positive.
Reads and writes nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hpgr.data.ratings import labels, numbers

if TYPE_CHECKING:
    from hpgr.config import Sessionize

SHOWN = 5  # actions in a message
# Words for what a shop or a player wants to happen; they come first in the advice.
WANTED = (
    *("buy", "bought", "purchase", "purchased", "order", "ordered", "transaction", "checkout"),
    *("conversion", "booking", "clickout", "like", "liked", "love", "loved", "favorite"),
    *("favourite", "save", "saved", "finish", "finished", "complete", "completed", "subscribe"),
    *("cart", "addtocart"),
)

Counts = Mapping[str | None, int]  # events by action; None is an event without one


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
