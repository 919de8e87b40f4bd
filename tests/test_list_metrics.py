"""Metrics inside a list against averages over every order of the tied items, one by one."""

from itertools import pairwise, permutations
from math import log2

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from hpgr.evaluation.list_metrics import list_metrics

CUTOFFS = (1, 3, 10)


def orders(score):
    """All orders of the items that put no lower score before a higher one."""
    found = [
        order
        for order in permutations(range(len(score)))
        if all(score[a] >= score[b] for a, b in pairwise(order))
    ]
    assert found
    return found


def by_hand(label, score):
    """The metrics of one list by their definitions, averaged over all orders."""
    gains = {f"ndcg@{k}": [] for k in CUTOFFS} | {"mrr": []}
    for order in orders(score):
        placed = [label[item] for item in order]
        gains["mrr"].append(1 / (1 + placed.index(1)))
        for k in CUTOFFS:
            best = sorted(placed, reverse=True)
            dcg, ideal = (
                sum(gain / log2(place + 2) for place, gain in enumerate(row[:k]))
                for row in (placed, best)
            )
            gains[f"ndcg@{k}"].append(dcg / ideal)
    pairs = [
        (a > b) + (a == b) / 2
        for a, liked in zip(score, label, strict=True)
        for b, other in zip(score, label, strict=True)
        if liked and not other
    ]
    return {name: np.mean(values) for name, values in gains.items()} | {"auc": np.mean(pairs)}


def random_lists(seed):
    """Lists of 2 to 6 items with both labels and many ties, some of them below every number."""
    rng = np.random.default_rng(seed)
    lists = []
    while len(lists) < 30:
        size = int(rng.integers(2, 7))
        label = rng.integers(0, 2, size)
        if 0 < label.sum() < size:
            lists.append((label, rng.choice([0.0, 0.5, 1.0, -np.inf], size)))
    return lists


@pytest.mark.parametrize("seed", range(3))
def test_every_list_has_the_mean_over_all_orders_of_its_ties(seed):
    lists = random_lists(seed)
    offsets = np.cumsum([0, *(len(label) for label, _ in lists)])
    label, score = (np.concatenate(column) for column in zip(*lists, strict=True))
    found = list_metrics(offsets, label, score, CUTOFFS)
    for number, (labels, scores) in enumerate(lists):
        expected = by_hand(labels.tolist(), scores.tolist())
        got = {name: values[number] for name, values in found.items()}
        assert got == pytest.approx(expected)


def test_long_lists_have_the_ndcg_of_scikit_learn():
    """Its ndcg_score averages over ties too; one score is -1 where a list of ours has -inf."""
    rng = np.random.default_rng(0)
    label = (rng.random((20, 50)) < 0.2).astype(int)
    label[:, 0], label[:, 1] = 1, 0
    score = rng.integers(-1, 6, label.shape).astype(float)
    offsets = np.arange(0, 1001, 50)
    ours = np.where(score == -1, -np.inf, score)
    found = list_metrics(offsets, label.ravel(), ours.ravel(), (5, 10))
    for k in (5, 10):
        assert found[f"ndcg@{k}"].mean() == pytest.approx(ndcg_score(label, score, k=k))


def test_a_constant_scorer_gets_the_mean_over_places():
    label = np.zeros(23, dtype=int)
    label[4] = 1
    found = list_metrics(np.array([0, 23]), label, np.zeros(23), (10,))
    assert found["mrr"][0] == pytest.approx(np.mean([1 / place for place in range(1, 24)]))
    assert found["ndcg@10"][0] == pytest.approx(
        sum(1 / log2(place + 1) for place in range(1, 11)) / 23
    )
    assert found["auc"][0] == 0.5


def test_positives_that_tie_with_each_other_cost_nothing():
    found = list_metrics(np.array([0, 4]), np.array([1, 1, 0, 0]), np.array([1, 1, 0, 0]), (3,))
    assert {name: values.tolist() for name, values in found.items()} == {
        "auc": [1.0], "ndcg@3": [1.0], "mrr": [1.0],
    }  # fmt: skip


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        list_metrics(np.array([0, 2]), np.array([0, 1]), np.array([0, np.nan]), (5,))
