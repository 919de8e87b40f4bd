"""The sessionized log as one Ibis expression, the same on every engine.

Pure functions from lazy tables to lazy tables: k-core, vocabulary by first appearance, session
cut, split and label. They read and write nothing; `hpgr.data.sessionize` runs them on DuckDB or
Spark. Input is `validated/events.parquet` (docs/artifacts.md).

Three rules make the rows equal on both engines: every tie is broken by `row`, the row number of
the source; every output column is cast, because engines disagree on the type of a window sum; and
the engine builds no lists, rows stay flat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import ibis

from hpgr.data.impressions import NO_USER
from hpgr.data.log import FIRST_ITEM, TEST, TRAIN, UNKNOWN, VALIDATION

if TYPE_CHECKING:
    from ibis.expr.types import IntegerColumn, Table

EVENTS_SCHEMA = {
    "user_id": "string",
    "item_id": "string",
    "timestamp": "int64",
    "action": "string",
    "session_id": "string",
    "row": "int64",
}
FIRST_ID = {"user_id": ("user", 0), "item_id": ("item", FIRST_ITEM), "action": ("action_id", 1)}


@dataclass(frozen=True)
class TimeCuts:
    """Last second (inclusive) of training and of validation under the global-time split."""

    train_until: int
    validation_until: int


def core_round(events: Table, min_user_events: int, min_item_events: int) -> Table:
    """Drop users, then items, with too few events.

    Repeated until no row drops, this gives the k-core: the largest part of the log in which every
    user and every item has enough events. It does not depend on the order of the rounds.
    """
    for key, least in (("user_id", min_user_events), ("item_id", min_item_events)):
        if least > 1:
            counts = events.group_by(key).agg(n=events.count())
            events = events.semi_join(counts.filter(counts.n >= least), key)
    return events


def vocabulary(events: Table, key: str) -> Table:
    """Dense ids of the values of `key` in order of first appearance.

    Args:
        events: the log.
        key: a key of `FIRST_ID`, which gives the name of the id column and the first id.
    """
    name, first_id = FIRST_ID[key]
    known = events.filter(events[key].notnull())
    times = known.group_by(key).agg(timestamp=known.timestamp.min())
    seen = known.inner_join(times, [key, "timestamp"])
    seen = seen.group_by(key).agg(timestamp=seen.timestamp.min(), row=seen.row.min())
    order = ibis.row_number().over(ibis.window(order_by=[seen.timestamp, seen.row]))
    return seen.select((order + first_id).cast("int32").name(name), key)


def coded(events: Table, users: Table, items: Table, actions: Table) -> Table:
    """The log with the numbers of `users`, `items` and `actions` for ids: shorter to handle.

    The three are the vocabularies of the whole log. Events without an action have none here.
    """
    t = events.inner_join(users, "user_id").inner_join(items, "item_id")
    t = t.left_join(actions, "action")
    return t.select(
        "timestamp", "session_id", "row", user_id="user", item_id="item", action="action_id"
    )


def core_vocabulary(known: Table, kept: Table, key: str) -> Table:
    """Dense ids of what survived the k-core, in the order of the whole log's ids.

    So they stand in order of first appearance in the whole log, before the k-core. Events appended
    later cannot change it, so ids do not move when a log grows at its end. (Only a value that the
    k-core had dropped and that later events restore is inserted at its old place.)

    Args:
        known: the whole log's vocabulary of `key`.
        kept: the part of the coded log that survived.
        key: as for `vocabulary`.

    Returns:
        The id, `key` and `code`, its id in `known`.
    """
    name, first_id = FIRST_ID[key]
    here = known.rename(code=name).semi_join(kept.select(code=key).distinct(), "code")
    order = ibis.row_number().over(ibis.window(order_by=here.code))
    return here.select((order + first_id).cast("int32").name(name), key, "code")


def time_cuts(events: Table, train_rank: int, validation_rank: int) -> Table:
    """One row with the fields of `TimeCuts`: the times of two 1-based ranks of the time order.

    Counted over distinct times, so no engine has to number the whole log in one partition.
    """
    counts = events.group_by("timestamp").agg(n=events.count())
    so_far = ibis.window(order_by=counts.timestamp, preceding=None, following=0)
    t = counts.select("timestamp", last_rank=counts.n.sum().over(so_far).cast("int64"))
    return t.agg(
        train_until=t.timestamp.min(where=t.last_rank >= train_rank),
        validation_until=t.timestamp.min(where=t.last_rank >= validation_rank),
    )


def sessionized(
    events: Table,
    users: Table,
    items: Table,
    actions: Table,
    *,
    gap_s: int,
    own_ids: bool,
    split: Literal["leave-one-out", "global-time"],
    cuts: TimeCuts | None,
) -> Table:
    """`sessions/events.parquet`, sorted by user and (timestamp, row).

    Sessions are numbered by their first events. Those of one user may interleave if the log has
    session ids: all events of a user with one id are one session.

    Args:
        events: the log after the k-core.
        users: `user_id` as in `events`, `user`.
        items: `item_id` as in `events`, `item`.
        actions: `action`, `action_id`, `label`; one row has a null `action`, for events without.
        gap_s: inactivity longer than this starts a session, seconds.
        own_ids: some event has a session id of the log's own.
        split: the rule for held-out events.
        cuts: borders of the global-time split; None for leave-one-out.
    """
    t = events.inner_join(users, "user_id").inner_join(items, "item_id")
    t = t.left_join(actions, t.action.identical_to(actions.action))
    t = _cut(t, gap_s, own_ids=own_ids)
    columns = {
        "user": t.user.cast("int32"),
        "item": t.item.cast("int32"),
        "timestamp": t.timestamp.cast("int64"),
        "action": t.action_id.cast("int16"),
        "label": t.label.cast("int8"),
        "session": t.session.cast("int32"),
        "position": t.position.cast("int32"),
        "split": _split(t, split, cuts).cast("int8"),
    }
    # (user, position) is a total order: position already breaks ties of time by row.
    return t.select(**columns).order_by("user", "position")


def shown(impressions: Table, users: Table, items: Table) -> Table:
    """The rows of `validated/impressions.parquet` in the numbers of the log, list by list.

    Sorted by user, time and list; in a list by position, or else as in the source.

    Args:
        impressions: the rows.
        users: `user_id`, `user`.
        items: `item_id`, `item`.

    Returns:
        `impression_id`, `item_id`, `user` (-1 where the log has none), `item` (UNKNOWN where it has
        none), `timestamp`, `position`, `label`.
    """
    opened = impressions.group_by("impression_id").agg(opened=impressions.row.min())
    t = impressions.inner_join(opened, "impression_id")
    t = t.left_join(users, "user_id").left_join(items, "item_id")
    columns = {
        "impression_id": t.impression_id,
        "item_id": t.item_id,
        "user": ibis.coalesce(t.user, NO_USER).cast("int32"),
        "item": ibis.coalesce(t.item, UNKNOWN).cast("int32"),
        "timestamp": t.timestamp.cast("int64"),
        "position": t.position.cast("int64"),
        "label": t.label.cast("int8"),
        "opened": t.opened,
        "row": t.row,
    }
    ordered = t.select(**columns).order_by("user", "timestamp", "opened", "position", "row")
    return ordered.drop("opened", "row")


def _cut(t: Table, gap_s: int, *, own_ids: bool) -> Table:
    """`t` with `position` and `session` within its user, and `length`, the events of that user.

    Events without an id are cut by the pause, measured among themselves.
    """
    keys, order = ["user"], ["timestamp", "row"]
    if own_ids:
        t = t.mutate(unnamed=t.session_id.isnull())
        keys.append("unnamed")
    window = {"group_by": keys, "order_by": order}
    t = t.mutate(  # together, so that DuckDB sorts once for all three
        position=ibis.row_number().over(ibis.window(group_by="user", order_by=order)),
        length=t.count().over(ibis.window(group_by="user")),
        previous=t.timestamp.lag().over(ibis.window(**window)),
    )
    starts = ibis.coalesce(t.timestamp - t.previous > gap_s, False)
    t = t.mutate(starts=starts.cast("int64"))
    so_far = ibis.window(**window, preceding=None, following=0)
    pauses = t.starts.sum().over(so_far)
    if not own_ids:
        return t.mutate(session=pauses)
    t = t.mutate(part=ibis.ifelse(t.unnamed, pauses, 0))
    same = ibis.window(group_by=["user", "session_id", "part"])
    t = t.mutate(opened_at=t.position.min().over(same))
    by_opening = ibis.window(group_by="user", order_by="opened_at")
    return t.mutate(session=ibis.dense_rank().over(by_opening))


def _split(t: Table, split: str, cuts: TimeCuts | None) -> IntegerColumn:
    # Typed literals: Ibis takes a bare one for int8 and then leaves out the cast to int8, while
    # DuckDB makes it an int32.
    train, validation, test = (ibis.literal(part, "int64") for part in (TRAIN, VALIDATION, TEST))
    if split == "leave-one-out":
        behind = t.length - 1 - t.position
        return ibis.cases((behind == 0, test), (behind == 1, validation), else_=train)
    assert cuts is not None, "the global-time split needs its borders"
    return ibis.cases(
        (t.timestamp > cuts.validation_until, test),
        (t.timestamp > cuts.train_until, validation),
        else_=train,
    )
