"""Slices of queries and candidates: by hand, and against plain loops over a small log."""

import numpy as np
import pytest
from evaluation_log import make_log, random_log
from sklearn.metrics import roc_auc_score

from hpgr.data.log import TEST, TRAIN
from hpgr.evaluation import metric_tables, protocols, slices

HISTORY = [
    (0, "no event"), (20, "1 to 20 events"), (50, "21 to 50"), (200, "51 to 200"),
    (1000, "201 to 1,000"), (10**9, "more than 1,000"),
]  # fmt: skip
PLACES = [(1, "first of its session"), (5, "2nd to 5th"), (20, "6th to 20th"), (10**9, "later")]


def test_popularity_classes_split_the_training_events_in_thirds():
    # Six training events: item 2 three times, 3 twice, 4 once; 5 is hidden only, 6 never seen.
    log = make_log(
        [[(2, 1, 1), (2, 2, 1), (2, 3, 1)], [(3, 1, 1), (3, 2, 1), (4, 3, 1), (5, 4, 1)]],
        held_out=[[0, 0, 0], [0, 0, 0, 2]],
        num_items=7,
    )
    assert slices.popularity_classes(log)[2:].tolist() == [0, 1, 2, 3, 3]


def test_place_in_session_by_hand():
    log = make_log([[(2, 0, 1), (3, 1, 1), (4, 9000, 1)], [(2, 0, 1), (3, 1, 1), (4, 2, 1)]])
    queries = protocols.next_item(log, TEST)
    masks = slices.gate_slices(log, queries.user, queries.row)
    assert masks["place: first of its session"].tolist() == [True, False]
    assert masks["place: later in the session"].tolist() == [False, True]


@pytest.mark.parametrize("split", ["leave-one-out", "global-time"])
def test_every_query_is_in_one_slice_of_each_family(split):
    log = random_log(1, split=split)
    queries = protocols.next_item(log, TEST)
    of_gate = slices.gate_slices(log, queries.user, queries.row)
    reported = slices.reported_slices(log, queries.user, queries.visible(log), queries.row)
    for masks, families in (
        (of_gate, {"user", "item", "place"}),
        (reported, {"user", "item", "place", "history", "known"}),
    ):
        found = {}
        for name, mask in masks.items():
            family = name.partition(":")[0]
            found[family] = found.get(family, 0) + mask.astype(int)
        assert found.keys() == families
        assert all((members == 1).all() for members in found.values())


def by_loops(log, user, row, visible):
    """Names of the slices by history, place and return of one event, event by event."""
    start = log.user_offsets[user]
    own = range(start, log.user_offsets[user + 1])
    known = any(log.split[r] == TRAIN for r in own)
    number = sum(log.session[r] == log.session[row] for r in range(start, row + 1))
    history = next(name for last, name in HISTORY if visible <= last)
    place = next(name for last, name in PLACES if number <= last)
    returning = "returning user" if known else "new user (no training event)"
    return {f"history: {history}", f"place: {place}", f"known: {returning}"}


def long_log():
    """Histories from none to more than 1,000 events; sessions interleave; one user is new."""
    rng = np.random.default_rng(0)
    users, held_out = [], []
    for length in (3, 30, 120, 500, 1100):
        time = 1000 + np.cumsum(rng.choice([0, 1, 4000], size=length, p=[0.3, 0.65, 0.05]))
        items, labels = rng.integers(2, 9, length), rng.integers(0, 2, length)
        users.append([*zip(items.tolist(), time.tolist(), labels.tolist(), strict=True)])
        held_out.append([TRAIN] * (length // 3) + [TEST] * (length - length // 3))
    held_out[1] = [TEST] * 30
    log = make_log(users, split="global-time", held_out=held_out)
    log.session[-50:-10:2] = log.session[-50] + 1
    return log


def test_history_place_and_return_are_those_of_plain_loops():
    log = long_log()
    queries = protocols.next_item(log, TEST)
    masks = slices.reported_slices(log, queries.user, queries.visible(log), queries.row)
    masks = {n: m for n, m in masks.items() if n.partition(":")[0] in {"history", "place", "known"}}
    met = set()
    for number, (user, row) in enumerate(zip(queries.user, queries.row, strict=True)):
        expected = by_loops(log, user, row, row - log.user_offsets[user])
        assert {name for name, mask in masks.items() if mask[number]} == expected
        met |= expected
    assert met == masks.keys() - {"history: no event"}  # which is no query for the next item


def test_a_slice_of_candidates_has_the_auc_of_its_candidates():
    """The history of a candidate ends before its second."""
    log = long_log()
    asked = protocols.labelled(log, TEST)
    score = np.random.default_rng(1).random(len(asked.row))
    members = {}
    user_of_event = log.user_of_event()
    for place, row in enumerate(asked.row):
        user = user_of_event[row]
        start = log.user_offsets[user]
        visible = sum(log.timestamp[r] < log.timestamp[row] for r in range(start, row))
        for name in by_loops(log, user, row, visible):
            members.setdefault(name, []).append(place)
    found = metric_tables.candidate_slices(log, asked, {"m": score}).set_index("slice")
    for name, places in members.items():
        label = asked.label[places]
        assert found.loc[name, "queries"] == len(places)
        if len({*label}) == 2:
            expected = roc_auc_score(label, score[places])
            assert found.loc[name, "auc"] == pytest.approx(expected)
        else:
            assert np.isnan(found.loc[name, "auc"])
    assert {n for n in found.index if n.startswith(("history", "place", "known"))} == {*members}


def test_a_slice_of_queries_has_their_weighted_mean():
    masks = {"a: 1": np.array([True, True, False]), "a: 2": np.array([False, False, False])}
    values = {"m": {"x": np.array([1.0, 4.0, 9.0]), "y": np.array([1.0, 0.0, 5.0])}}
    weights = {"x": np.array([1.0, 2.0, 3.0])}
    (row,) = metric_tables.slice_table(masks, values, ["x", "y"], weights).itertuples(index=False)
    assert tuple(row) == ("a: 1", 2, "m", 3.0, 0.5)
