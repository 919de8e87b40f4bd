"""Small generated logs in the shape of `hpgr.data.log`, for the evaluation tests."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np

from hpgr.data.log import DTYPES, FIRST_ITEM, TEST, TRAIN, VALIDATION, EventLog, Meta

GAP_S = 1800


def make_log(users, *, split="leave-one-out", num_items=None, held_out=None) -> EventLog:
    """From a list of users, each a list of (item, timestamp, label), sorted by time.

    `held_out` gives the split of every event, user by user; by default the last event of a user is
    test and the one before it validation.
    """
    events = [event for user in users for event in user]
    item = np.array([e[0] for e in events], dtype=np.int32)
    timestamp = np.array([e[1] for e in events], dtype=np.int64)
    label = np.array([e[2] for e in events], dtype=np.int8)
    offsets = np.concatenate([[0], np.cumsum([len(u) for u in users])]).astype(np.int64)
    session = np.zeros(len(events), dtype=np.int32)
    parts = np.zeros(len(events), dtype=np.int8)
    for start, stop in pairwise(offsets):
        gaps = np.diff(timestamp[start:stop]) > GAP_S
        session[start + 1 : stop] = np.cumsum(gaps)
        if held_out is None and stop - start >= 3:
            parts[stop - 1], parts[stop - 2] = TEST, VALIDATION
    if held_out is not None:
        parts = np.concatenate([np.asarray(h, dtype=np.int8) for h in held_out])
    num_items = num_items or int(item.max(initial=FIRST_ITEM)) + 1
    return EventLog(
        meta=Meta(len(users), num_items, 3, 1, len(events), split, GAP_S),
        user_offsets=offsets,
        item=item,
        timestamp=timestamp,
        action=(label + 1).astype(np.int16),
        label=label,
        session=session,
        split=parts,
        category_offsets=np.zeros(num_items + 1, dtype=np.int64),
        category=np.empty(0, dtype=np.int32),
        action_value=np.array([np.nan, 0, 1], dtype=np.float32),
    )


def random_log(seed, *, num_users=40, num_items=30, split="leave-one-out") -> EventLog:
    """Users walk along the catalogue; many events share a second, some open a session."""
    rng = np.random.default_rng(seed)
    users = []
    for _ in range(num_users):
        length = int(rng.integers(4, 25))
        step = rng.choice([1, 1, 1, 2, 7], size=length)
        walk = (rng.integers(num_items) + np.cumsum(step)) % num_items + FIRST_ITEM
        gap = rng.choice([0, 0, 60, 5 * GAP_S], size=length)
        time = 1_000_000_000 + int(rng.integers(10**7)) + np.cumsum(gap)
        label = (rng.random(length) < 0.2 + 0.6 * (walk % 3 == 0)).astype(int)
        users.append(list(zip(walk.tolist(), time.tolist(), label.tolist(), strict=True)))
    log = make_log(users, split=split, num_items=num_items + FIRST_ITEM)
    if split == "leave-one-out":
        return log
    order = np.argsort(log.timestamp, kind="stable")
    parts = np.zeros(log.meta.num_events, dtype=np.int8)
    parts[order[int(0.6 * len(order)) :]] = VALIDATION
    parts[order[int(0.8 * len(order)) :]] = TEST
    return EventLog(**{**log.__dict__, "split": parts})


def log_of_baskets() -> EventLog:
    """Thirty users with one to six days of baskets in training, one in validation, two in test."""
    random, users, held_out = np.random.default_rng(0), [], []
    for user in range(30):
        days = 4 + user % 6
        day = np.repeat(np.arange(days), random.integers(1, 5, days))
        item = (user + random.integers(8, size=len(day))) % 30 + FIRST_ITEM
        label = random.integers(2, size=len(day))
        users.append(list(zip(item.tolist(), (86_400 * day).tolist(), label.tolist(), strict=True)))
        part = np.array([TRAIN] * (days - 3) + [VALIDATION, TEST, TEST])
        held_out.append(part[day].tolist())
    return make_log(users, split="global-time", num_items=32, held_out=held_out)


def write_arrays(log: EventLog, folder: Path) -> None:
    """Write `log` the way the sessionize stage does."""
    folder.mkdir(parents=True)
    for name in DTYPES:
        np.save(folder / f"{name}.npy", getattr(log, name))
    (folder / "meta.json").write_text(json.dumps(log.meta.__dict__))
