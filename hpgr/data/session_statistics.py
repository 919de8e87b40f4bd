"""Statistics of a sessionized log and its sensitivity to the session gap, from the flat arrays.

Reads the memory-mapped arrays in blocks, so memory does not grow with the log. Writes nothing; the
sessionize stage stores the results as `stats.json` and `gaps.csv`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpgr.data.log import TEST, TRAIN, VALIDATION, EventLog, opening

BLOCK_ROWS = 1 << 22
MINUTE, HOUR, DAY = 60, 3600, 86400
# Upper edges of the gap histogram: 0 (equal times), then round durations on a logarithmic axis.
GAP_EDGES_S = (
    *(0, 1, 2, 5, 10, 20, 30, MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE),
    *(30 * MINUTE, HOUR, 2 * HOUR, 4 * HOUR, 8 * HOUR, 12 * HOUR, DAY, 2 * DAY, 4 * DAY, 7 * DAY),
    *(14 * DAY, 30 * DAY, 90 * DAY, 180 * DAY, 365 * DAY, 1000 * DAY, 3000 * DAY, 10000 * DAY),
)


@dataclass(frozen=True)
class Totals:
    """Sums over all events of a log; S sessions, U users, V items, A actions.

    Attributes:
        gap_edges: upper edges of the gap bins, seconds.
        gaps: gaps between neighbours of one user by bin, [edges + 1]; the last bin is open.
        session_lengths: events of each session, [S].
        sessions_per_user: [U].
        resumed: number of times that a session continued after an event of another one of its user.
        items: events of each item by split, [3, V].
        actions: events of each action by split, [3, A]; those of action 0 have none.
        positives: events with label 1 by split, [3].
        users: users with an event in the split, [3].
        span: first and last timestamp, seconds.
    """

    gap_edges: np.ndarray
    gaps: np.ndarray
    session_lengths: np.ndarray
    sessions_per_user: np.ndarray
    resumed: int
    items: np.ndarray
    actions: np.ndarray
    positives: np.ndarray
    users: np.ndarray
    span: tuple[int, int]

    @property
    def events(self) -> np.ndarray:
        """Events by split, int64 [3]."""
        return self.items.sum(axis=1)


def totals(log: EventLog) -> Totals:
    """Sum over the log in blocks of rows."""
    num_users = log.meta.num_users
    edges = np.array(sorted({*GAP_EDGES_S, log.meta.gap_s}))
    gaps = np.zeros(len(edges) + 1, dtype=np.int64)
    items = np.zeros((3, log.meta.num_items), dtype=np.int64)
    actions = np.zeros((3, log.meta.num_actions), dtype=np.int64)
    positives = np.zeros(3, dtype=np.int64)
    user_seen = np.zeros((3, num_users), dtype=bool)
    sessions_per_user = np.zeros(num_users, dtype=np.int64)
    newest_key, resumed = -1, 0
    span = (np.iinfo(np.int64).max, np.iinfo(np.int64).min)
    for rows, user in _blocks(log):
        split, times = log.split[rows], log.timestamp[rows]
        opens = log.user_offsets[user] == rows
        before = np.maximum(rows - 1, 0)
        since = (times - log.timestamp[before])[~opens]
        gaps += np.bincount(np.searchsorted(edges, since), minlength=len(gaps))
        start, newest_key = opening(user, log.session[rows], newest_key)
        resumed += int((~start & (log.session[rows] != log.session[before])).sum())
        sessions_per_user += np.bincount(user[start], minlength=num_users)
        items += _by_split(split, log.item[rows], log.meta.num_items)
        actions += _by_split(split, log.action[rows], log.meta.num_actions)
        positives += np.bincount(split[log.label[rows] == 1], minlength=3)
        user_seen[split, user] = True
        span = (min(span[0], int(times.min())), max(span[1], int(times.max())))
    return Totals(
        gap_edges=edges,
        gaps=gaps,
        session_lengths=_session_lengths(log, sessions_per_user),
        sessions_per_user=sessions_per_user,
        resumed=resumed,
        items=items,
        actions=actions,
        positives=positives,
        users=user_seen.sum(axis=1),
        span=span,
    )


def _blocks(log: EventLog) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of a block of the log and the user of each."""
    for begin in range(0, log.meta.num_events, BLOCK_ROWS):
        end = min(begin + BLOCK_ROWS, log.meta.num_events)
        first, last = np.searchsorted(log.user_offsets, (begin, end - 1), side="right") - 1
        counts = np.diff(np.clip(log.user_offsets[first : last + 2], begin, end))
        yield np.arange(begin, end), np.repeat(np.arange(first, last + 1), counts)


def _by_split(split: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    """Number of rows of each split and index below `size`, int64 [3, size]."""
    return np.bincount(split.astype(np.int64) * size + index, minlength=3 * size).reshape(3, size)


def _session_lengths(log: EventLog, sessions_per_user: np.ndarray) -> np.ndarray:
    """Events of each session, [S], in order of user and number; sessions may interleave."""
    before = np.cumsum(sessions_per_user) - sessions_per_user
    lengths = np.zeros(int(sessions_per_user.sum()), dtype=np.int64)
    for rows, user in _blocks(log):
        number = before[user] + log.session[rows]
        low, high = int(number.min()), int(number.max())
        lengths[low : high + 1] += np.bincount(number - low, minlength=high + 1 - low)
    return lengths


def statistics(log: EventLog, sums: Totals) -> dict[str, Any]:
    """Content of `stats.json`: no wall clock, so a repeated run gives the same bytes."""
    per_user = np.diff(log.user_offsets)
    neighbours = int(sums.gaps.sum())
    seen, cold = sums.items > 0, sums.items[TRAIN] == 0
    splits = {}
    for name, part in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        events = int(sums.events[part])
        splits[name] = {
            "events": events,
            "users": int(sums.users[part]),
            "items": int(seen[part].sum()),
            "positive_share": _share(int(sums.positives[part]), events),
            "cold_items": int(seen[part, cold].sum()),
            "cold_events": int(sums.items[part, cold].sum()),
        }
    return {
        "users": log.meta.num_users,
        "items": int(seen.any(axis=0).sum()),
        "events": log.meta.num_events,
        "actions": log.meta.num_actions - 1,
        "categories": log.meta.num_categories - 1,
        "first_timestamp": sums.span[0],
        "last_timestamp": sums.span[1],
        "events_per_user": {
            "min": int(per_user.min()),
            "median": float(np.median(per_user)),
            "p90": float(np.quantile(per_user, 0.9)),
            "max": int(per_user.max()),
        },
        "sessions": {
            "gap_s": log.meta.gap_s,
            "number": len(sums.session_lengths),
            "events_mean": round(float(sums.session_lengths.mean()), 4),
            "events_median": float(np.median(sums.session_lengths)),
            "per_user_mean": round(float(sums.sessions_per_user.mean()), 4),
            "per_user_median": float(np.median(sums.sessions_per_user)),
            "users_with_several": int((sums.sessions_per_user > 1).sum()),
            "resumed": sums.resumed,
        },
        "same_timestamp_share": _share(int(sums.gaps[0]), neighbours),
        "repeat_share": log.meta.repeat_share,
        "split": log.meta.split,
        "splits": splits,
    }


def gap_table(sums: Totals, num_users: int) -> list[tuple[int, int, int]]:
    """Rows of `gaps.csv`: upper edge of the bin in seconds, gaps in the bin, sessions if cut there.

    The third column is the sensitivity of the session cut: with that edge as the gap limit every
    longer gap starts a session. Session ids of the log, if it has any, take precedence.
    Edges beyond the longest gap are left out.
    """
    longer = sums.gaps.sum() - np.cumsum(sums.gaps)
    rows = zip(sums.gap_edges, sums.gaps, longer, strict=False)  # the open bin has no edge
    table = [(int(edge), int(count), int(rest) + num_users) for edge, count, rest in rows]
    return table[: np.count_nonzero(longer) + 1]


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
