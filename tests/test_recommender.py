"""The recommender around a fake network whose scores a reader can work out."""

from dataclasses import replace

import numpy as np
import pytest
from one_by_one import Reread

from hpgr.data.histories import Histories
from hpgr.data.log import UNKNOWN
from hpgr.registry.bundle import Serving
from hpgr.runtime import UserError
from hpgr.serving import best_items
from hpgr.serving.recommender import Item, Recommender
from hpgr.serving.request import Request

ITEMS = [
    Item(2, "a", "Alpha", 7),
    Item(3, "b", "Beta", 9),
    Item(4, "c", "Gamma", 1),
    Item(5, "d", "Delta", 5),
]
ACTIONS = {"1": 1, "5": 2}
SERVING = Serving(gap_s=100, max_history=3, retrieve=3, remove_history=True, ranked=True)


class FakeScorer(Reread):
    """Item i has similarity i and probability 1 / i.

    The first history event is the only anchor of a query; a candidate has the last event as well,
    three times as heavy.
    """

    def __init__(self):
        self.seen: Histories | None = None

    def retrieve(self, histories):
        assert np.diff(histories.offsets).any(), "the network cannot score only empty histories"
        self.seen = histories
        return np.tile(np.arange(6, dtype=np.float32), (len(histories), 1))

    def rank(self, histories, offsets, candidates):
        assert offsets[-1] == len(candidates)
        return (1 / candidates).astype(np.float32)

    def explain(self, histories, offsets=None, candidates=None):
        length = np.diff(histories.offsets)
        assert length.all(), "nothing explains an empty history"
        if candidates is None:
            q = len(histories)
            return np.tile([0, -1], (q, 1)), np.tile(np.float32([0.5, 0.0]), (q, 1))
        last = np.repeat(length - 1, np.diff(offsets))
        assert len(last) == len(candidates)
        weights = np.tile(np.float32([0.2, 0.6]), (len(last), 1))
        return np.stack([np.zeros(len(last), dtype=int), last], axis=1), weights


def recommender(**changes) -> Recommender:
    return Recommender(FakeScorer(), ITEMS, ACTIONS, replace(SERVING, **changes))


def request(*events, at=1000, **columns) -> Request:
    return Request(at, [e[0] for e in events], [e[1] for e in events], **columns)


def test_retrieves_by_similarity_then_orders_by_probability():
    # Retrieved: d (5), c (4), b (3). By probability 1/i: b, c, d.
    (answer,) = recommender(remove_history=False).recommend([request(("c", 10))], k=2)
    assert [(i.item_id, i.title) for i in answer.items] == [("b", "Beta"), ("c", "Gamma")]
    assert answer.items[0].score == pytest.approx(1 / 3)
    assert answer.items[0].similarity == 3


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_a_catalogue_scored_in_blocks_gives_the_same_answers(block, monkeypatch):
    asked = [request(("c", 10)), request(), request(("c", 10), ("d", 20))]
    lists = ({}, {"allow": ["a", "d"]}, {"deny": ["b"]})
    expected = [recommender().recommend(asked, k=2, **kept) for kept in lists]
    monkeypatch.setattr(best_items, "ITEMS_SCORED", block)
    assert [recommender().recommend(asked, k=2, **kept) for kept in lists] == expected


def blended(**changes) -> Recommender:
    """Cosine / temperature is i / 0.5 for item i, and log p(like) is -log i."""
    return recommender(
        **{"remove_history": False, "like_weight": 1.0, "temperature": 0.5} | changes
    )


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (0, "dcb"),
        (1, "dcb"),  # 8.39, 6.61, 4.90
        (7.2, "dbc"),  # -1.59, -1.91, -1.98
        (8, "bdc"),  # -2.79, -2.88, -3.09
        (20, "bcd"),
        (None, "dcb"),  # the version's own, 1
    ],
)
def test_the_order_blends_nearness_and_probability(weight, expected):
    (answer,) = blended().recommend([request(("c", 10))], k=3, like_weight=weight)
    assert [i.item_id for i in answer.items] == list(expected)
    index = {item.item_id: item.index for item in ITEMS}
    for item in answer.items:  # whatever the order, these two say the same
        assert item.score == pytest.approx(1 / index[item.item_id])
        assert item.similarity == index[item.item_id]


def test_a_version_without_a_weight_is_ordered_by_probability_alone_unless_asked():
    older = blended(like_weight=None)
    asked = [request(("c", 10))]
    for weight, expected in ((None, "bcd"), (0, "dcb"), (8, "bdc")):
        (answer,) = older.recommend(asked, k=3, like_weight=weight)
        assert [i.item_id for i in answer.items] == list(expected)


def test_a_newcomers_order_blends_the_share_of_events_and_probability():
    # Popularity retrieves b (9), a (7), d (5): log(n + 1) - w log i is by hand
    # 2.30, 2.08, 1.79 at w = 0; 1.20, 1.39, 0.18 at w = 1; and 1.70, 1.70 part at w = 0.551.
    for weight, expected in ((0, "bad"), (0.5, "bad"), (0.6, "abd"), (1, "abd")):
        (answer,) = blended(like_weight=weight).recommend([request()], k=3)
        assert [i.item_id for i in answer.items] == list(expected)
        assert answer.source == "popular"


def test_a_newcomer_whose_list_allows_too_few_gets_these():
    (answer,) = blended().recommend([request()], k=3, allow=["d"])
    assert [i.item_id for i in answer.items] == ["d"]


@pytest.mark.parametrize("weight", [-0.1, 100.1, float("nan"), float("inf"), 10**400])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(UserError, match=r"like_weight is .*, expected a number from 0 .* to 100"):
        blended().recommend([request(("a", 1))], k=1, like_weight=weight)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ranked": False, "like_weight": 0.0}, "trained without a ranking head"),
        ({"temperature": None, "like_weight": None}, "has no finetune.temperature"),
    ],
)
def test_a_weight_that_means_nothing_to_the_model_is_refused(changes, why):
    service = blended(**changes)
    with pytest.raises(UserError, match=rf"like_weight is 0.5, but .*{why}"):
        service.recommend([request(("a", 1))], k=1, like_weight=0.5)
    (answer,) = service.recommend([request(("c", 1))], k=3, like_weight=0)
    assert [i.item_id for i in answer.items] == ["d", "c", "b"]


def test_an_untrained_ranking_head_has_no_say():
    (answer,) = recommender(ranked=False).recommend([request(("a", 10))], k=2)
    assert [(i.item_id, i.score) for i in answer.items] == [("d", None), ("c", None)]


def test_items_beyond_the_networks_reach_are_removed_too():
    events = [("d", 1), ("a", 2), ("a", 3), ("a", 4)]  # d is older than max_history
    (answer,) = recommender().recommend([request(*events)], k=4)
    assert [i.item_id for i in answer.items] == ["b", "c"]


def test_anchors_are_named_by_their_items():
    (answer,) = recommender().recommend([request(("b", 1), ("a", 2))], k=1)
    assert [(d.title, d.weight) for d in answer.anchors] == [("Beta", 1.0)]


def test_each_item_has_the_anchors_that_placed_it():
    empty, full, other = recommender().recommend(
        [request(), request(("b", 1), ("a", 2)), request(("c", 3), ("new", 4))], k=3
    )
    assert [[d.title for d in item.anchors] for item in empty.items] == [[], [], []]
    for item in full.items:
        assert [(d.item_id, d.title) for d in item.anchors] == [("a", "Alpha"), ("b", "Beta")]
        assert [d.weight for d in item.anchors] == pytest.approx([0.75, 0.25])
    # An unknown item has no name to be shown by: the others share its weight.
    assert [[(d.title, d.weight) for d in item.anchors] for item in other.items] == [
        [("Gamma", 1.0)]
    ] * 3


def test_without_a_ranking_head_the_answers_anchors_are_those_of_each_item():
    (answer,) = recommender(ranked=False).recommend([request(("b", 1), ("a", 2))], k=2)
    assert [item.anchors for item in answer.items] == [answer.anchors] * 2
    assert [anchor.title for anchor in answer.anchors] == ["Beta"]


def test_events_are_sorted_by_time_and_ties_keep_their_order():
    service = recommender()
    service.recommend([request(("c", 30), ("b", 20), ("a", 20), actions=["5", "1", None])], k=1)
    assert service.scorer.seen.item.tolist() == [3, 2, 4]
    assert service.scorer.seen.action.tolist() == [1, 0, 2]
    assert service.scorer.seen.timestamp.tolist() == [20, 20, 30]


def test_unknown_items_and_actions_get_the_unknown_ids():
    service = recommender()
    service.recommend([request(("new", 1), ("a", 2), actions=["new", "1"])], k=1)
    assert service.scorer.seen.item.tolist() == [UNKNOWN, 2]
    assert service.scorer.seen.action.tolist() == [0, 1]


def test_a_session_ends_after_the_gap_and_not_at_it():
    service = recommender()
    service.recommend([request(("a", 0), ("b", 100), ("c", 201))], k=1)
    assert service.scorer.seen.session.tolist() == [0, 0, 1]


def test_the_callers_sessions_come_before_the_gap():
    service = recommender()
    events = [("a", 0), ("b", 1), ("c", 500)]
    service.recommend([request(*events, session_ids=["x", "y", "y"])], k=1)
    assert service.scorer.seen.session.tolist() == [0, 1, 1]


def test_the_callers_sessions_may_interleave_and_events_without_one_are_cut_by_the_gap():
    service = recommender(max_history=10)
    events = [("a", 0), ("b", 1), ("c", 2), ("d", 50), ("e", 500), ("a", 550)]
    own = ["x", None, "y", "x", None, None]
    service.recommend([request(*events, session_ids=own)], k=1)
    assert service.scorer.seen.session.tolist() == [0, 1, 2, 0, 3, 3]


def test_a_batch_answers_like_single_requests():
    asked = [request(("a", 1), ("b", 2)), request(("c", 5)), request(("d", 1), ("a", 900))]
    service = recommender()
    alone = [service.recommend([one], k=3)[0] for one in asked]
    assert service.recommend(asked, k=3) == alone


def test_an_empty_history_gets_the_most_popular_items_ordered_by_the_ranking_head():
    # Popularity retrieves b (9), a (7), d (5); probability 1/i places a before b and d.
    (answer,) = recommender().recommend([request()], k=2)
    assert [i.item_id for i in answer.items] == ["a", "b"]
    assert (answer.items[0].score, answer.items[0].similarity) == (pytest.approx(1 / 2), None)
    assert (answer.source, answer.anchors) == ("popular", [])


def test_an_empty_history_without_a_ranking_head_gets_the_most_popular_items():
    (answer,) = recommender(ranked=False).recommend([request()], k=3)
    assert [i.item_id for i in answer.items] == ["b", "a", "d"]


def test_an_empty_history_beside_others_changes_nothing_for_them():
    service = recommender()
    other = request(("a", 1), ("b", 2))
    (alone,) = service.recommend([other], k=3)
    empty, together = service.recommend([request(), other], k=3)
    assert together == alone
    assert empty.source == "popular" and together.source == "history"


def test_a_history_of_unknown_items_alone_still_answers():
    (answer,) = recommender().recommend([request(("new", 1), ("newer", 2))], k=2)
    assert [i.item_id for i in answer.items] == ["b", "c"]
    assert (answer.source, answer.unknown_items, answer.anchors) == ("history", 2, [])


def test_an_exact_duplicate_counts_once():
    service = recommender(max_history=9)
    events = [("a", 5), ("b", 5), ("a", 5), ("a", 5), ("new", 6), ("newer", 6), ("a", 7)]
    actions = ["1", "1", "1", "5", None, None, "1"]
    service.recommend([request(*events, actions=actions)], k=1)
    assert service.scorer.seen.item.tolist() == [2, 3, 2, UNKNOWN, UNKNOWN, 2]
    assert service.scorer.seen.action.tolist() == [1, 1, 2, 0, 0, 1]


def test_of_a_long_history_the_newest_events_are_read():
    service = recommender()
    events = [("a", time) for time in range(5000)]
    service.recommend([request(("b", 0), *events, ("c", 5000), at=5000)], k=1)
    assert service.scorer.seen.timestamp.tolist() == [4998, 4999, 5000]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"allow": ["d", "c", "nowhere"]}, ["c", "d"]),
        ({"deny": ["b", "nowhere"]}, ["c", "d"]),
        ({"allow": ["b", "c"], "deny": ["c"]}, ["b"]),
        ({"allow": ["a"]}, []),  # allowed, but seen already
    ],
)
def test_lists_say_what_may_be_recommended(filters, expected):
    (answer,) = recommender().recommend([request(("a", 1))], k=4, **filters)
    assert [i.item_id for i in answer.items] == expected


def test_a_list_of_unknown_items_alone_is_refused():
    with pytest.raises(UserError, match="none of the 2 item ids to allow"):
        recommender().recommend([request(("a", 1))], k=1, allow=["x", "y"])


@pytest.mark.parametrize("k", [0, -3])
def test_k_is_a_positive_number(k):
    with pytest.raises(UserError, match=f"k is {k}, expected"):
        recommender().recommend([request(("a", 1))], k=k)


def test_a_k_beyond_the_catalogue_returns_what_there_is():
    (answer,) = recommender().recommend([request(("a", 1))], k=10**9)
    assert [i.item_id for i in answer.items] == ["b", "c", "d"]


def test_blocks_of_queries_answer_like_one_block(monkeypatch):
    asked = [request(("a", 1)), request(), request(("b", 1), ("d", 2)), request(("c", 3))]
    whole = recommender().recommend(asked, k=3)
    monkeypatch.setattr("hpgr.serving.best_items.CELLS", 12)  # two queries of six scores
    assert recommender().recommend(asked, k=3) == whole


def test_an_event_in_the_second_of_the_request_is_history():
    (answer,) = recommender().recommend([request(("a", 1000), at=1000)], k=1)
    assert answer.items


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (request(("a", 1), at=None), "request 0 has no request time"),
        (request(("a", 1001), at=1000), r"event 0 \(item a\) has time 1001, after"),
        (request(("a", -1), at=1000), "has time -1, expected seconds"),
        (request(("a", 1), at=-5), "request_time is -5, expected seconds"),
        (request(("a", 1), at=1_700_000_000_000), "milliseconds"),
        (request(("a", 1), actions=["1", "5"]), "1 item_ids but 2 actions"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(bad, message):
    with pytest.raises(UserError, match=message):
        recommender().recommend([bad], k=1)
