"""The Ibis expression against brute force in plain Python, on random small logs."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import NamedTuple

import ibis
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpgr.data import sessions

GAP_S = 10
SCHEMA = pa.schema([(name, getattr(pa, kind)()) for name, kind in sessions.EVENTS_SCHEMA.items()])
LABELS = pa.table(
    {
        "action": ["view", "buy", None],
        "action_id": pa.array([1, 2, 0], pa.int16()),
        "label": pa.array([0, 1, 0], pa.int8()),
    }
)


class Event(NamedTuple):
    user_id: str
    item_id: str
    timestamp: int
    action: str | None
    session_id: str | None
    row: int


def log_of(*fields: st.SearchStrategy, min_size: int = 1) -> st.SearchStrategy[list[Event]]:
    return st.lists(st.tuples(*fields), min_size=min_size, max_size=40).map(
        lambda rows: [Event(*fields, row) for row, fields in enumerate(rows)]
    )


# Few distinct times, so that most logs have ties within a user and across users.
times = st.integers(1, 60)
actions = st.sampled_from(["view", "buy", None])
logs = log_of(st.sampled_from("abcd"), st.sampled_from("uvwxyz"), times, actions, st.none())
logs_with_sessions = log_of(
    st.sampled_from("ab"), st.just("u"), times, actions, st.sampled_from(["s1", "s2", None])
)
few = settings(max_examples=15, deadline=None)


def lazy(events: list[Event]) -> ibis.Table:
    return ibis.memtable(pa.Table.from_pylist([e._asdict() for e in events], SCHEMA))


def column(table: ibis.Table, name: str) -> list:
    return table.to_pyarrow()[name].to_pylist()


def run(
    events: list[Event], split: str = "leave-one-out", cuts: sessions.TimeCuts | None = None
) -> pa.Table:
    table = lazy(events)
    log = sessions.sessionized(
        table,
        sessions.vocabulary(table, "user_id"),
        sessions.vocabulary(table, "item_id"),
        ibis.memtable(LABELS),
        gap_s=GAP_S,
        own_ids=any(e.session_id is not None for e in events),
        split=split,
        cuts=cuts,
    )
    return log.to_pyarrow()


def ids(events: list[Event], key: str) -> dict[str, int]:
    found = sessions.vocabulary(lazy(events), key).to_pyarrow().to_pydict()
    return dict(zip(found[key], found[sessions.FIRST_ID[key][0]], strict=True))


def in_order(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda e: (e.timestamp, e.row))


def by_user(events: list[Event]) -> list[list[Event]]:
    """Events of each user in order, users by first appearance."""
    users: dict[str, list[Event]] = {}
    for e in in_order(events):
        users.setdefault(e.user_id, []).append(e)
    return list(users.values())


@few
@given(logs, st.integers(1, 5), st.integers(1, 5))
def test_core_is_what_repeated_removal_leaves(events, min_user, min_item):
    expected = events
    while True:
        users, items = Counter(e.user_id for e in expected), Counter(e.item_id for e in expected)
        keep = [
            e for e in expected if users[e.user_id] >= min_user and items[e.item_id] >= min_item
        ]
        if len(keep) == len(expected):
            break
        expected = keep
    found = {e.row for e in events}
    while True:
        left = lazy([e for e in events if e.row in found])
        smaller = set(column(sessions.core_round(left, min_user, min_item), "row"))
        if smaller == found:
            break
        found = smaller
    assert found == {e.row for e in expected}


@few
@given(logs)
def test_events_stand_by_user_and_then_by_time_and_source_row(events):
    users, items = by_user(events), list(dict.fromkeys(e.item_id for e in in_order(events)))
    found = run(events).select(["user", "position", "item", "timestamp"]).to_pylist()
    assert [tuple(row.values()) for row in found] == [
        (u, position, items.index(e.item_id) + 2, e.timestamp)
        for u, user in enumerate(users)
        for position, e in enumerate(user)
    ]


@few
@given(logs, st.randoms(use_true_random=False))
def test_the_order_of_rows_in_the_file_does_not_matter(events, random):
    shuffled = random.sample(events, len(events))
    assert run(shuffled).equals(run(events))


@few
@given(logs)
def test_a_gap_longer_than_the_limit_starts_a_session(events):
    expected = []
    for user in by_user(events):
        number = 0
        for i, e in enumerate(user):
            number += i > 0 and e.timestamp - user[i - 1].timestamp > GAP_S
            expected.append(number)
    assert run(events)["session"].to_pylist() == expected


def test_a_gap_of_exactly_the_limit_stays_in_the_session():
    events = [
        Event("a", "u", time, None, None, row)
        for row, time in enumerate((100, 100 + GAP_S, 100 + 2 * GAP_S + 1))
    ]
    assert run(events)["session"].to_pylist() == [0, 0, 1]


def planted(user: list[Event]) -> list[tuple[str | None, int]]:
    """Session of each event of a user, by brute force."""
    keys: list[tuple[str | None, int]] = []
    for i, e in enumerate(user):
        pauses = 0
        unnamed = [other for other in user[: i + 1] if other.session_id is None]
        if e.session_id is None:
            pauses = sum(b.timestamp - a.timestamp > GAP_S for a, b in pairwise(unnamed))
        keys.append((e.session_id, pauses))
    return keys


@few
@given(logs_with_sessions)
def test_the_log_s_own_ids_are_the_sessions_also_where_they_interleave(events):
    expected = []
    for user in by_user(events):
        keys = planted(user)
        first = list(dict.fromkeys(keys))
        expected += [first.index(key) for key in keys]
    assert run(events)["session"].to_pylist() == expected


@few
@given(logs)
def test_action_and_label_come_from_the_table_of_actions(events):
    known = {"view": (1, 0), "buy": (2, 1), None: (0, 0)}
    found = run(events)
    assert list(zip(found["action"].to_pylist(), found["label"].to_pylist(), strict=True)) == [
        known[e.action] for user in by_user(events) for e in user
    ]


@few
@given(logs)
def test_leave_one_out_holds_out_the_last_two_of_each_user(events):
    expected = [
        {1: 2, 2: 1}.get(len(user) - i, 0) for user in by_user(events) for i in range(len(user))
    ]
    assert run(events)["split"].to_pylist() == expected


def global_cuts(events: list[Event], train_rank: int, validation_rank: int) -> sessions.TimeCuts:
    row = sessions.time_cuts(lazy(events), train_rank, validation_rank).to_pyarrow().to_pylist()[0]
    return sessions.TimeCuts(**row)


@few
@given(logs, st.data())
def test_global_time_moves_ties_at_a_border_to_the_early_side(events, data):
    ordered = in_order(events)
    late = data.draw(st.integers(1, len(ordered)))
    early = data.draw(st.integers(1, late))
    borders = []
    for border in (early, late):
        while border < len(ordered) and ordered[border].timestamp == ordered[border - 1].timestamp:
            border += 1
        borders.append(border)
    part = {e.row: (i >= borders[0]) + (i >= borders[1]) for i, e in enumerate(ordered)}
    found = run(events, "global-time", global_cuts(events, early, late))
    assert found["split"].to_pylist() == [part[e.row] for user in by_user(events) for e in user]


@pytest.mark.parametrize("split", ["leave-one-out", "global-time"])
@few
@given(logs)
def test_no_held_out_event_comes_before_a_training_event_of_its_user(split, events):
    cuts = None
    if split == "global-time":
        cuts = global_cuts(events, max(len(events) // 2, 1), max(len(events) * 3 // 4, 1))
    found = run(events, split, cuts)
    rows = list(zip(*(found[n].to_pylist() for n in ("user", "position", "split")), strict=True))
    for user, position, part in rows:
        assert all(p >= part for u, later, p in rows if u == user and later > position)


@pytest.mark.parametrize(("key", "first_id"), [("user_id", 0), ("item_id", 2), ("action", 1)])
@few
@given(logs)
def test_ids_count_up_by_first_appearance(key, first_id, events):
    seen = dict.fromkeys(getattr(e, key) for e in in_order(events))
    seen.pop(None, None)
    assert ids(events, key) == {value: i for i, value in enumerate(seen, start=first_id)}


@pytest.mark.parametrize("key", ["user_id", "item_id", "action"])
@few
@given(logs, logs)
def test_ids_stay_when_later_events_are_appended(key, events, later):
    # The earliest appended event shares the last second of the old log: the source row decides.
    shift = max(e.timestamp for e in events) - min(e.timestamp for e in later)
    appended = [e._replace(timestamp=e.timestamp + shift, row=e.row + len(events)) for e in later]
    before, after = ids(events, key), ids(events + appended, key)
    assert {value: after[value] for value in before} == before


@few
@given(logs, st.integers(1, 4))
def test_what_the_core_keeps_is_numbered_in_the_order_of_the_whole_log(events, least):
    table = lazy(events)
    whole = {key: sessions.vocabulary(table, key) for key in sessions.FIRST_ID}
    kept = sessions.core_round(sessions.coded(table, *whole.values()), 1, least)
    counts = Counter(e.item_id for e in events)
    left = [e for e in in_order(events) if counts[e.item_id] >= least]
    for key, (name, first_id) in sessions.FIRST_ID.items():
        found = sessions.core_vocabulary(whole[key], kept, key).order_by(name).to_pyarrow()
        alive = {getattr(e, key) for e in left} - {None}
        expected = [value for value in ids(events, key) if value in alive]
        assert found[key].to_pylist() == sorted(expected, key=ids(events, key).get)
        assert found[name].to_pylist() == list(range(first_id, first_id + len(expected)))


@few
@given(logs)
def test_a_coded_log_has_the_same_rows(events):
    table = lazy(events)
    whole = [sessions.vocabulary(table, key) for key in sessions.FIRST_ID]
    found = sessions.coded(table, *whole).order_by("row").to_pyarrow().to_pylist()
    known = {key: ids(events, key) for key in sessions.FIRST_ID}
    assert [(r["user_id"], r["item_id"], r["action"], r["timestamp"]) for r in found] == [
        (
            known["user_id"][e.user_id],
            known["item_id"][e.item_id],
            known["action"].get(e.action),
            e.timestamp,
        )
        for e in events
    ]
