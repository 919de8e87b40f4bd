"""Logs with random events between the real ones, for `noise.py`.

An inserted event has

- an item drawn by popularity in training, among those that its user never meets: what gets into a
  history by mistake is mostly what is shown most, and a network could tell rare items by rarity;
- an action drawn from those of the training events, whatever the item;
- a time drawn evenly between its neighbours. Sessions are cut anew by the log's pause.

It lies between two events that a query sees. So the newest event is a real one: a query's state is
that event's, and no attention could leave it out. Reads a log in memory, writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hpgr.data.log import TRAIN, EventLog
from hpgr.evaluation.baselines import train_counts
from hpgr.evaluation.protocols import Asked
from hpgr.runtime import UserError

DRAWS = 1000  # rounds in which items that a user meets are drawn again


@dataclass(frozen=True)
class NoisyLog:
    """A log with inserted events, which are marked in `inserted` bool [E'].

    `row` int64 [E] is the new row of every event of the real log.
    """

    log: EventLog
    inserted: np.ndarray
    row: np.ndarray

    def asked(self, queries: Asked) -> Asked:
        """The queries in this log: what they saw before, and what was inserted between."""
        behind = np.append(-1, self.row) + 1  # the row behind each real event, and before the first
        return replace(queries, end=behind[queries.end], row=self.row[queries.row])


def with_noise(log: EventLog, users: np.ndarray, share: float) -> NoisyLog:
    """Insert events between those of `users` [U], as if each event were one with chance `share`.

    Raises:
        UserError: a user has met too much of the catalogue.
    """
    random = np.random.default_rng(round(1000 * share))
    user = log.user_of_event()
    followed = np.append(user[1:] == user[:-1], False) & np.isin(user, users)
    count = np.where(followed, random.geometric(1 - share, len(user)) - 1, 0)
    row = np.arange(len(user)) + np.cumsum(count) - count
    real = np.repeat(np.arange(len(user)), count + 1)  # each new row's own, or the one before it
    inserted = np.ones(len(real), dtype=bool)
    inserted[row] = False
    left = real[inserted]
    item, action, time = (column[real] for column in (log.item, log.action, log.timestamp))
    item[inserted] = unmet_items(log, user, user[left], random)
    trained = np.flatnonzero(log.split == TRAIN)
    action[inserted] = log.action[random.choice(trained, len(left))]
    part = random.random(len(left))
    part = part[np.lexsort((part, left))]  # those between the same neighbours in order
    gap = log.timestamp[np.minimum(left + 1, len(user) - 1)] - log.timestamp[left]
    time[inserted] = log.timestamp[left] + (part * gap).astype(np.int64)
    offsets = np.append(row, len(real))[log.user_offsets]
    session = log.session[real]
    if not log.meta.own_sessions:
        number = np.cumsum(np.diff(time, prepend=time[:1]) > log.meta.gap_s)
        session = (number - number[offsets[user[real]]]).astype(session.dtype)
    noisy = replace(
        log,
        meta=replace(log.meta, num_events=len(real)),
        user_offsets=offsets,
        item=item,
        action=action,
        timestamp=time,
        session=session,
        label=log.label[real],
        split=log.split[real],
    )
    return NoisyLog(noisy, inserted, row)


def unmet_items(
    log: EventLog, user: np.ndarray, of_draw: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """An item a draw, by popularity in training, that its user `of_draw` [N] meets nowhere.

    Args:
        log: the real log.
        user: of each of its events, [E].
        of_draw: the user of each draw.
        random: where they come from.

    Raises:
        UserError: a user has met too much of the catalogue.
    """
    num_items = log.meta.num_items
    count = train_counts(log)
    met = np.unique(user * num_items + log.item)
    item = np.zeros(len(of_draw), dtype=np.int64)
    left = np.arange(len(of_draw))
    for _ in range(DRAWS):
        if not len(left):
            return item
        item[left] = random.choice(num_items, len(left), p=count / count.sum())
        key = of_draw[left] * num_items + item[left]
        left = left[met[np.minimum(np.searchsorted(met, key), len(met) - 1)] == key]
    raise UserError(
        f"no noise for {len(np.unique(of_draw[left]))} users: after {DRAWS} draws by popularity "
        "they had met every item drawn; take a log with a larger catalogue"
    )
