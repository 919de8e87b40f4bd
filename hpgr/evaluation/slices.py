"""Slices of queries and candidates: by user, history, item and place in the session.

A mask [R] a slice, by its name FAMILY: PART; every row is in one slice of each family. Rows are
queries or candidates. Reads the arrays of `hpgr.data.log`. Writes nothing.
"""

from __future__ import annotations

import numpy as np

from hpgr.data.log import TRAIN, EventLog, opening
from hpgr.evaluation.baselines import train_counts

Slices = dict[str, np.ndarray]
# The largest number of each slice.
HISTORY = {
    "history: no event": 0.0,
    "history: 1 to 20 events": 20.0,
    "history: 21 to 50": 50.0,
    "history: 51 to 200": 200.0,
    "history: 201 to 1,000": 1000.0,
    "history: more than 1,000": np.inf,
}
PLACES = {
    "place: first of its session": 1.0,
    "place: 2nd to 5th": 5.0,
    "place: 6th to 20th": 20.0,
    "place: later": np.inf,
}


def gate_slices(log: EventLog, user: np.ndarray, row: np.ndarray) -> Slices:
    """The gate's slices: activity of the user, class of the item, opens its session or not.

    Args:
        log: the sessionized log.
        user: user of every row, [R].
        row: log row of the hidden event or candidate, [R].
    """
    opens = opening(log.user_of_event(), log.session)[0][row]
    return {
        **activity(log, user),
        **_popularity(log, row),
        "place: first of its session": opens,
        "place: later in the session": ~opens,
    }


def reported_slices(
    log: EventLog, user: np.ndarray, visible: np.ndarray, row: np.ndarray | None = None
) -> Slices:
    """The slices of a report: user and history and, of single events, item and place.

    Args:
        log: the sessionized log.
        user: user of every row, [R].
        visible: number of events of the user that it may see, [R].
        row: as in `gate_slices`; None where more than one event is hidden.
    """
    found = {**activity(log, user), **_returning(log, user)}
    found |= _spans(visible, HISTORY)
    if row is not None:
        found |= {**_popularity(log, row), **_spans(_place_in_session(log)[row], PLACES)}
    return found


def popularity_classes(log: EventLog) -> np.ndarray:
    """Class of every item, int8 [num_items]: 0 head, 1 mid, 2 tail, 3 cold (no training event).

    Head are the most popular items that together hold a third of the training events, mid those
    that hold the next third.
    """
    count = train_counts(log)
    order = np.argsort(-count, kind="stable")
    before = np.cumsum(count[order]) - count[order]
    classes = np.empty(len(count), dtype=np.int8)
    classes[order] = np.minimum(2, before * 3 // max(1, count.sum()))
    classes[count == 0] = 3
    return classes


def activity(log: EventLog, user: np.ndarray) -> Slices:
    """Masks [R] over rows of `user` [R], by terciles of training events among these users."""
    count = _training_events(log)
    events = count[user]
    low, high = np.quantile(count[np.unique(user)], [1 / 3, 2 / 3]).astype(np.int64)
    return {
        f"user: up to {low} training events": events <= low,
        f"user: {low + 1} to {high}": (events > low) & (events <= high),
        f"user: more than {high}": events > high,
    }


def _returning(log: EventLog, user: np.ndarray) -> Slices:
    known = _training_events(log)[user] > 0
    return {"known: new user (no training event)": ~known, "known: returning user": known}


def _popularity(log: EventLog, row: np.ndarray) -> Slices:
    classes = popularity_classes(log)[log.item[row]]
    return {
        "item: head": classes == 0,
        "item: mid": classes == 1,
        "item: tail": classes == 2,
        "item: cold (never in training)": classes == 3,
    }


def _spans(values: np.ndarray, last: dict[str, float]) -> Slices:
    """Slices of numbers [R], each up to and with its `last`, above the one before it."""
    place = np.searchsorted([*last.values()], values)
    return {name: place == number for number, name in enumerate(last)}


def _training_events(log: EventLog) -> np.ndarray:
    """Training events of every user, int64 [num_users]."""
    total = np.concatenate([[0], np.cumsum(log.split == TRAIN)])
    return np.asarray(total[log.user_offsets[1:]] - total[log.user_offsets[:-1]])


def _place_in_session(log: EventLog) -> np.ndarray:
    """Place of every event in its session, from 1, int64 [num_events]; sessions may interleave."""
    key = (log.user_of_event().astype(np.int64) << 32) | log.session.astype(np.int64)
    order = np.argsort(key, kind="stable")
    _, first, size = np.unique(key[order], return_index=True, return_counts=True)
    place = np.empty(len(key), dtype=np.int64)
    place[order] = np.arange(len(key)) - np.repeat(first, size) + 1
    return place
