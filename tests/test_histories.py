"""Histories and their renumbering, query by query."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpgr.data.histories import Histories, runs
from hpgr.data.id_map import IdMap, Ids, read_indices
from hpgr.data.log import UNKNOWN

LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=8)
COLUMNS = ("item", "action", "timestamp", "session")


def some(lengths) -> Histories:
    """Every value is another one, so that no event can stand for its neighbour."""
    total = sum(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(
        offsets,
        np.arange(total, dtype=np.int32),
        np.arange(100, 100 + total, dtype=np.int16),
        np.arange(200, 200 + total),
        np.arange(300, 300 + total, dtype=np.int32),
        np.arange(1000, 1000 + len(lengths)),
    )


def one_by_one(histories):
    """(request time, events) of each query, events as tuples of all columns."""
    rows = list(zip(*(getattr(histories, name).tolist() for name in COLUMNS), strict=True))
    return [
        (int(time), rows[histories.offsets[q] : histories.offsets[q + 1]])
        for q, time in enumerate(histories.request_time)
    ]


@given(lengths=LENGTHS, data=st.data())
def test_take_gives_the_queries_that_a_slice_a_mask_or_indices_name(lengths, data):
    whole, count = some(lengths), len(lengths)
    bound = st.none() | st.integers(-count - 2, count + 2)
    step = st.none() | st.sampled_from([1, 2, -1])
    part = slice(data.draw(bound), data.draw(bound), data.draw(step))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    index = np.array(data.draw(st.lists(st.integers(-count, count - 1))), dtype=np.int64)
    expected = one_by_one(whole)
    assert one_by_one(whole.take(part)) == expected[part]
    assert one_by_one(whole.take(mask)) == [q for q, m in zip(expected, mask, strict=True) if m]
    assert one_by_one(whole.take(index)) == [expected[i] for i in index]
    assert whole.take(part).take(slice(0, 1)).offsets[0] == 0


def test_neighbouring_queries_are_views():
    whole = some([2, 3, 1])
    assert np.shares_memory(whole.take(slice(1, 3)).item, whole.item)


@given(lengths=LENGTHS, count=st.integers(0, 7))
def test_last_keeps_the_newest_events_of_each_query(lengths, count):
    whole = some(lengths)
    expected = [(time, rows[max(0, len(rows) - count) :]) for time, rows in one_by_one(whole)]
    assert one_by_one(whole.last(count)) == expected


@given(lengths=LENGTHS)
def test_without_empty_leaves_those_who_did_something(lengths):
    whole = some(lengths)
    assert one_by_one(whole.without_empty()) == [q for q in one_by_one(whole) if q[1]]


def test_with_ids_renumbers_items_and_actions_alone():
    whole = some([2, 1])
    item, action = np.array([5, 4, 3]), np.full(103, 7)
    found = one_by_one(whole.with_ids(item, action))
    assert found == [(1000, [(5, 7, 200, 300), (4, 7, 201, 301)]), (1001, [(3, 7, 202, 302)])]
    assert whole.with_ids(item, action).item.dtype == np.int32


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6)), max_size=6))
def test_runs_are_the_ranges_one_after_the_other(pairs):
    start, length = (
        (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
        if (pairs)
        else (np.empty(0, np.int64), np.empty(0, np.int64))
    )
    offsets, rows = runs(start, length)
    assert rows.tolist() == [row for s, n in pairs for row in range(s, s + n)]
    assert np.diff(offsets).tolist() == length.tolist()


NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True)


def ids(items, actions) -> Ids:
    return Ids({n: i + 2 for i, n in enumerate(items)}, {n: i + 1 for i, n in enumerate(actions)})


@given(log=st.tuples(NAMES, NAMES), model=st.tuples(NAMES, NAMES))
def test_an_id_map_leads_to_the_index_of_the_same_external_id(log, model):
    ours, theirs = ids(*log), ids(*model)
    found = IdMap.between(ours, theirs)
    expected = [0, UNKNOWN] + [theirs.items.get(name, UNKNOWN) for name in log[0]]
    assert found.item.tolist() == expected
    assert found.action.tolist() == [0] + [theirs.actions.get(name, 0) for name in log[1]]
    scores = np.arange(2 + len(model[0]), dtype=np.float32)[None, :]
    wanted = [-np.inf, -np.inf] + [theirs.items.get(name, -np.inf) for name in log[0]]
    assert found.scores(scores)[0].tolist() == pytest.approx(wanted)


def test_ids_are_read_from_the_tables(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"item": [3, 2], "item_id": ["x", "y"]}), tmp_path / "items.parquet")
    pq.write_table(pa.table({"action": [1], "name": ["view"]}), tmp_path / "actions.parquet")
    assert Ids.read(tmp_path) == ({"x": 3, "y": 2}, {"view": 1})
    assert read_indices(tmp_path, "items") == {"x": 3, "y": 2}
