"""The served order against the same order worked out item by item, in plain Python."""

import math

import numpy as np
import pytest
from evaluation_log import random_log
from test_contest import REACH, SETTINGS, Follower, queries_of

from hpgr.data.log import FIRST_ITEM, TEST
from hpgr.evaluation import protocols, retrieval
from hpgr.evaluation.blend import Blend, likes, reorder
from hpgr.evaluation.like_weight import served_ranks

TEMPERATURE = 0.05
RETRIEVE = 6


class Toy(Follower):
    """Cosines between -1 and 1, all different; likes by a fixed table of its items."""

    def __init__(self, num_items):
        super().__init__(num_items, 1.0)
        rng = np.random.default_rng(1)
        self.wobble = rng.random(num_items)
        self.like = (0.05 + 0.9 * rng.random(num_items)).astype(np.float32)

    def retrieve(self, histories):
        newest = histories.item[histories.offsets[1:] - 1].astype(float)
        phase = newest[:, None] * self.wobble[None, :] * 7
        scores = np.cos(phase + np.arange(self.num_items)[None, :]).astype(np.float32)
        scores[:, :FIRST_ITEM] = -np.inf
        return scores

    def rank(self, histories, offsets, candidates):
        return self.like[candidates]


def served(network, allowed, scores, weight):
    """The retrieved items of one query, best first, by the definition of the order."""
    normal = math.log(
        sum(math.exp(scores[i] / TEMPERATURE) for i in range(FIRST_ITEM, len(scores)))
    )
    found = sorted(allowed, key=lambda i: -scores[i])[:RETRIEVE]

    def score(item):
        log_next = scores[item] / TEMPERATURE - normal
        return log_next + weight * math.log(float(network.like[item]))

    return sorted(found, key=lambda i: -score(i))


def brute_force(log, network, weight):
    """Rank of each hidden item and the served list, query by query; ranks below it are counted."""
    for target, allowed, scores in queries_of(log, network):
        best = served(network, allowed, scores, weight)
        if target in best:
            yield best.index(target) + 1, best
        elif target in allowed:
            yield 1 + sum(scores[i] > scores[target] for i in allowed), best
        else:
            yield None, best


@pytest.mark.parametrize("weight", [0.0, 0.3, 2.0, 30.0])
def test_the_order_is_log_p_next_plus_w_log_p_like(weight):
    log = random_log(3)
    network = Toy(log.meta.num_items)
    queries = protocols.next_item(log, TEST)
    settings = SETTINGS.model_copy(update={"cutoffs": (RETRIEVE,), "retrieve": RETRIEVE})
    blend = Blend(weight, TEMPERATURE)
    (found,) = retrieval.run(
        log, queries, {"n": network}, settings,
        max_history=REACH, title="", then_rank=(network, {True: blend}),
    )  # fmt: skip
    expected = list(brute_force(log, network, weight))
    assert len(expected) == len(queries)
    for rank, top, (right, best) in zip(
        found["n_then_rank"].ranks, found["n_then_rank"].top, expected, strict=True
    ):
        assert top[top >= FIRST_ITEM].tolist() == best
        assert rank == right or (right is None and rank > log.meta.num_items)
    (ranks,) = served_ranks(log, queries, network, found["n"], [blend], max_history=REACH, title="")
    assert (ranks == found["n_then_rank"].ranks).all()
    moved = (found["n_then_rank"].top != found["n"].top).any()
    assert moved == (weight > 0)


def test_weight_zero_is_retrievals_own_order_exactly():
    """Ties and all, and whatever the head says: also a probability of 0."""
    log = random_log(4)
    network = Follower(log.meta.num_items, 0.0)  # ties
    network.rank = lambda histories, offsets, candidates: (candidates % 2).astype(np.float32)
    queries = protocols.next_item(log, TEST)
    (found,) = retrieval.run(
        log, queries, {"n": network}, SETTINGS,
        max_history=REACH, title="", then_rank=(network, {True: Blend(0.0, TEMPERATURE)}),
    )  # fmt: skip
    assert (found["n_then_rank"].ranks == found["n"].ranks).all()
    assert (found["n_then_rank"].top == found["n"].top).all()


def test_cosines_that_differ_in_their_last_bit_stay_in_order():
    near = np.float32(0.9)
    cosine = np.array([[np.nextafter(near, np.float32(1)), near]], dtype=np.float32)
    like = np.full((1, 2), 0.5, np.float32)
    ranks, _ = reorder(
        Blend(1.0, 0.07), np.array([[7, 8]]), cosine, like, np.array([8]), np.array([2])
    )
    assert ranks.tolist() == [2]


def test_reordering_ranks_the_retrieved_by_probability_and_the_rest_below():
    like = np.array([[0.1, 0.9, 0.5], [0.5, 0.5, 0.2]], dtype=np.float32)
    retrieved, cosine = np.array([[4, 5, 6], [7, 8, 9]]), np.zeros((2, 3), np.float32)
    for blend in (Blend(None, None), Blend(1.0, 1.0)):  # equal cosines: pCTR decides
        ranks, items = reorder(blend, retrieved, cosine, like, np.array([4, 3]), np.array([1, 2]))
        # The first target was on top and has the lowest probability; the second, tied with a
        # retrieved item in retrieval, was not retrieved.
        assert ranks.tolist() == [3, 4]
        assert items.tolist() == [[5, 6, 4], [7, 8, 9]]


def test_reordering_charges_half_for_tied_probabilities():
    retrieved = np.arange(2, 23)[None, :]
    like = np.full(retrieved.shape, 0.5, dtype=np.float32)
    ranks, _ = reorder(
        Blend(None, None), retrieved, np.zeros_like(like), like, np.array([2]), np.array([1])
    )
    assert ranks.tolist() == [11]


def test_an_empty_place_stays_last_and_is_not_asked_about():
    class Sure:
        def rank(self, histories, offsets, candidates):
            assert candidates.tolist() == [4, 5, 6] and offsets.tolist() == [0, 2, 3]
            return np.array([0.1, 0.9, 0.3], dtype=np.float32)

    retrieved = np.array([[4, 5], [6, -1]])
    like = likes(Sure(), None, retrieved)
    cosine = np.array([[0.5, 0.4], [0.1, -np.inf]], dtype=np.float32)
    target, ranks = np.array([5, 9]), np.array([2, 2])
    ranks, items = reorder(Blend(9.0, 1.0), retrieved, cosine, like, target, ranks)
    assert items.tolist() == [[5, 4], [6, -1]]
    assert ranks.tolist() == [1, 2]
