"""A request as its caller knows it, checked and turned into the arrays that the network reads.

Rules, each the offline rule of the validate and sessionize stages (docs/serving.md):
- of events with the same item, time and action the first is kept;
- events are sorted by time, stably: events of one second keep the caller's order;
- an item or action that the model was not trained with becomes the unknown id;
- events with one session id of the caller's are one session, also where sessions interleave; those
  without an id are cut by a pause of more than `gap_s` among themselves.
An event after the request time is refused, not dropped: it is a wrong clock or a wrong unit, and
silence would hide it. An event in the second of the request is history. Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpgr.data.histories import Histories, offsets_of
from hpgr.data.id_map import NO_ACTION
from hpgr.data.log import UNKNOWN
from hpgr.runtime import UserError
from hpgr.terminal import short, shown

LATEST_SECONDS = 100_000_000_000  # the year 5138; milliseconds of our time lie above


@dataclass(frozen=True)
class Request:
    """One question: the asker's events (equal lengths, any order) and when it is asked (UTC, s).

    No event at all is a newcomer's question.
    """

    request_time: int | None
    item_ids: Sequence[str]
    timestamps: Sequence[int]
    actions: Sequence[str | None] | None = None
    session_ids: Sequence[str | None] | None = None


def encode(
    requests: Sequence[Request],
    item: Mapping[str, int],
    action: Mapping[str, int],
    *,
    gap_s: int,
) -> Histories:
    """All events of the requests; `item` and `action` map external ids to indices.

    Raises:
        UserError: a request has no time, columns of unequal length, a time that is not in seconds
            or an event after its time; the message names the request.
    """
    rows = [
        _encode(request, number, item, action, gap_s) for number, request in enumerate(requests)
    ]
    items, actions, timestamp, session = (
        np.concatenate(column) for column in zip(*rows, strict=True)
    )
    return Histories(
        offsets=offsets_of(np.array([len(row[0]) for row in rows])),
        item=items,
        action=actions,
        timestamp=timestamp,
        session=session,
        request_time=np.array([request.request_time for request in requests], np.int64),
    )


def _encode(
    request: Request, number: int, item: Mapping[str, int], action: Mapping[str, int], gap_s: int
) -> tuple[np.ndarray, ...]:
    """(item, action, timestamp, session) of one request, sorted and cut into sessions."""
    _check(request, number)
    count = len(request.item_ids)
    names = request.actions or [None] * count
    own = request.session_ids or [None] * count
    # Of equal events the first: it is the last one here, and takes the place of the others.
    events = zip(request.item_ids, request.timestamps, names, strict=True)
    first = dict(zip(reversed(list(events)), reversed(range(count)), strict=True))
    time = np.array(request.timestamps, dtype=np.int64)
    kept = np.sort(np.fromiter(first.values(), dtype=np.int64, count=len(first)))
    kept = kept[np.argsort(time[kept], kind="stable")]
    items = np.array([item.get(name, UNKNOWN) for name in request.item_ids], np.int32)
    actions = np.array([action.get(name or "", NO_ACTION) for name in names], np.int16)
    session = _sessions([own[place] for place in kept.tolist()], time[kept], gap_s)
    return items[kept], actions[kept], time[kept], session


def _sessions(own: Sequence[str | None], time: np.ndarray, gap_s: int) -> np.ndarray:
    """Number of each event's session, int32; `own` ids and `time` in order of time."""
    unnamed = np.array([name is None for name in own], dtype=bool)
    part = np.zeros(len(own), dtype=np.int64)
    part[unnamed] = np.cumsum(np.diff(time[unnamed], prepend=time[unnamed][:1]) > gap_s)
    if unnamed.all():  # numbered already
        return part.astype(np.int32)
    numbers: dict[tuple[str | None, int], int] = {}
    keys = zip(own, part.tolist(), strict=True)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int32)


def _check(request: Request, number: int) -> None:
    where = f"request {number}"
    time = request.request_time
    if time is None:
        raise UserError(
            f"{where} has no request time: the model weighs events by how long ago they were, "
            "so an answer without one would depend on a guess. Pass the time of the request."
        )
    if not 0 <= time <= LATEST_SECONDS:
        raise UserError(
            f"{where}: request_time is {shown(time)}, expected seconds since 1970 (UTC), not "
            "milliseconds"
        )
    count = len(request.item_ids)
    for name in ("timestamps", "actions", "session_ids"):
        column = getattr(request, name)
        if column is not None and len(column) != count:
            raise UserError(
                f"{where}: {count} item_ids but {len(column)} {name}; expected one for each event"
            )
    moments = request.timestamps
    if not moments or 0 <= min(moments) <= max(moments) <= time:
        return
    for row, moment in enumerate(moments):
        if 0 <= moment <= time:
            continue
        event = f"event {row} (item {short(request.item_ids[row])}) has time {shown(moment)}"
        if moment > time:
            raise UserError(
                f"{where}: {event}, after the request time {time}. Events from the future would "
                "leak into the answer: check the clock, the unit (seconds) and the request time."
            )
        raise UserError(f"{where}: {event}, expected seconds since 1970 (UTC)")
