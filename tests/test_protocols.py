"""Queries of R1, R2 and K1 on logs spelled out by hand, and the leaks that they must not have."""

import numpy as np
import pytest
from evaluation_log import make_log, random_log

from hpgr.data.log import TEST, VALIDATION
from hpgr.evaluation import protocols


def test_leave_one_out_hides_the_last_event_and_shows_all_before():
    log = make_log(
        [[(2, 10, 1), (3, 20, 1), (4, 30, 0), (5, 40, 1)], [(6, 5, 1), (2, 6, 1), (3, 6, 0)]]
    )
    queries = protocols.next_item(log, TEST)
    seen = queries.histories(log, 200)
    assert queries.target.tolist() == [5, 3]
    assert queries.request_time.tolist() == [40, 6]
    assert seen.item.tolist() == [2, 3, 4, 6, 2]
    assert seen.offsets.tolist() == [0, 3, 5]


def test_leave_one_out_on_validation_does_not_show_the_test_event():
    log = make_log([[(2, 10, 1), (3, 20, 1), (4, 30, 0), (5, 40, 1)]])
    queries = protocols.next_item(log, VALIDATION)
    assert queries.target.tolist() == [4]
    assert queries.histories(log, 200).item.tolist() == [2, 3]


def test_history_is_cut_to_the_newest_events():
    log = make_log([[(i, 10 * i, 1) for i in range(2, 9)]])
    assert protocols.next_item(log, TEST).histories(log, 3).item.tolist() == [5, 6, 7]


def test_global_time_asks_every_test_event_after_its_users_first():
    log = make_log(
        [[(2, 10, 1), (3, 20, 1), (4, 90, 1), (5, 95, 1)], [(2, 91, 1), (6, 92, 0)]],
        split="global-time",
        held_out=[[0, 1, 2, 2], [2, 2]],
    )
    queries = protocols.next_item(log, TEST)
    assert queries.target.tolist() == [4, 5, 6]  # not item 2 of the second user: nothing before it
    seen = queries.histories(log, 200)
    assert [
        seen.item[a:b].tolist() for a, b in zip(seen.offsets, seen.offsets[1:], strict=False)
    ] == [
        [2, 3],
        [2, 3, 4],
        [2],
    ]


def test_candidates_of_one_second_share_a_query_and_never_see_each_other():
    log = make_log(
        [[(2, 10, 1), (3, 90, 0), (4, 90, 1), (5, 91, 1)], [(6, 95, 0)]],
        split="global-time",
        held_out=[[0, 2, 2, 2], [2]],
    )
    asked = protocols.labelled(log, TEST)
    assert asked.offsets.tolist() == [0, 2, 3, 4]
    assert asked.item.tolist() == [3, 4, 5, 6]
    assert asked.label.tolist() == [0, 1, 1, 0]
    seen = asked.histories(log, 200)
    assert [
        seen.item[a:b].tolist() for a, b in zip(seen.offsets, seen.offsets[1:], strict=False)
    ] == [
        [2],
        [2, 3, 4],
        [],
    ]


def test_a_split_that_starts_inside_a_second_hides_that_whole_second():
    log = make_log(
        [[(2, 10, 1), (3, 90, 1), (4, 90, 0)]], split="global-time", held_out=[[0, 1, 2]]
    )
    assert protocols.labelled(log, TEST).histories(log, 200).item.tolist() == [2]


@pytest.mark.parametrize("seed", range(5))
def test_candidates_cover_the_split_and_see_only_what_is_strictly_earlier(seed):
    log = random_log(seed, split="global-time")
    asked = protocols.labelled(log, TEST)
    seen = asked.histories(log, 10**6)
    user_of_event = log.user_of_event()
    assert asked.row.tolist() == np.flatnonzero(log.split == TEST).tolist()
    for q in range(len(asked)):
        mine = user_of_event == asked.user[q]
        earlier = mine & (log.timestamp < asked.request_time[q])
        assert (
            seen.item[seen.offsets[q] : seen.offsets[q + 1]].tolist() == log.item[earlier].tolist()
        )


@pytest.mark.parametrize("split", ["leave-one-out", "global-time"])
def test_changing_the_hidden_event_and_later_ones_changes_no_history(split):
    log = random_log(3, split=split)
    queries = protocols.next_item(log, TEST)
    before = queries.histories(log, 200)
    q = len(queries) // 2
    item = log.item.copy()
    item[queries.row[q] :] = 2
    changed = type(log)(**{**log.__dict__, "item": item})
    after = queries.histories(changed, 200)
    part = slice(before.offsets[q], before.offsets[q + 1])
    assert before.item[part].tolist() == after.item[part].tolist()


def test_taking_candidates_keeps_their_queries():
    asked = protocols.labelled(random_log(0, split="global-time"), TEST)
    half = len(asked) // 2
    parts = [asked.take(slice(0, half)), asked.take(slice(half, len(asked)))]
    assert np.concatenate([p.item for p in parts]).tolist() == asked.item.tolist()
    assert np.concatenate([p.candidate_user() for p in parts]).tolist() == (
        asked.candidate_user().tolist()
    )
