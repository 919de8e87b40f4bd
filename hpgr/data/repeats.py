"""Repeats: items that a user meets again, and the one rule for them.

In a log with many repeats (music, groceries) the items of a user's history stay in the answers. In
other logs they are removed, and a hidden item that the user had before counts as a miss, since it
cannot be served. The sessionize stage decides (`remove_history` of `hpgr.data.log.Meta`); training,
evaluation, the gate, serving and batch scoring follow. Writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hpgr.data.histories import bounded
from hpgr.data.log import TEST, EventLog, Meta

if TYPE_CHECKING:
    from hpgr.config import Evaluate


def repeat_share(log: EventLog) -> float:
    """Share of repeats among the events of training and validation, without each user's first.

    Choices must not look at test events. 0 if there are no such events. Reads blocks of whole
    users.
    """
    length = np.diff(log.user_offsets)
    repeats, events = 0, 0
    for users in bounded(length, queries=max(1, log.meta.num_users)):
        rows = slice(int(log.user_offsets[users.start]), int(log.user_offsets[users.stop]))
        user = np.repeat(np.arange(users.start, users.stop), length[users])
        kept = np.asarray(log.split[rows]) != TEST
        key = np.sort(user[kept] * log.meta.num_items + log.item[rows][kept])
        repeats += int((key[1:] == key[:-1]).sum())
        events += int((np.diff(user[kept]) == 0).sum())
    return repeats / events if events else 0.0


def removes_history(repeat_share: float, settings: Evaluate) -> bool:
    """Return True if items that a user had before are removed from the answers."""
    if settings.remove_history == "auto":
        return repeat_share <= settings.max_repeat_share
    return settings.remove_history


def rule(meta: Meta, settings: Evaluate) -> str:
    """The share found and the decision, in one sentence."""
    found = f"{meta.repeat_share:.1%} of the next events repeat an item that their user had before"
    share = f"{settings.max_repeat_share:.0%}"
    if settings.remove_history == "auto":
        side = "up to" if meta.remove_history else "more than"
        why = f"evaluate.remove_history: auto, {side} {share}"
    else:
        why = f"evaluate.remove_history: {str(settings.remove_history).lower()}"
    chosen = (
        "such items leave the answers, and a repeat among the hidden items is a miss"
        if meta.remove_history
        else "such items stay in the answers, and a repeat among the hidden items can be found"
    )
    return f"{found}: {chosen} ({why})"
