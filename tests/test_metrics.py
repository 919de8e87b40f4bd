"""Metrics against brute force, ir-measures and scikit-learn."""

from dataclasses import replace

import ir_measures
import numpy as np
import pytest
from evaluation_log import random_log
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ir_measures import RR, R, nDCG
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from hpgr import metrics
from hpgr.config import load_config
from hpgr.data.log import FIRST_ITEM, VALIDATION
from hpgr.evaluation import protocols, retrieval
from hpgr.training import validation

NO_CHUNKS = {"catalogue_chunk": 10**6}


def brute_force_rank(scores, target, removed):
    """Mean rank over all orders of the tied, rounded up, among the items that compete."""
    rivals = [
        scores[i] for i in range(FIRST_ITEM, len(scores)) if i != target and i not in set(removed)
    ]
    if target in removed:
        return metrics.MISS
    better = sum(value > scores[target] for value in rivals)
    tied = sum(value == scores[target] for value in rivals)
    return int(np.ceil(1 + better + tied / 2))


@given(
    scores=arrays(np.float32, (4, 13), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0])),
    target=arrays(np.int64, 4, elements=st.integers(FIRST_ITEM, 12)),
    seen=st.lists(st.lists(st.integers(0, 12), max_size=8), min_size=4, max_size=4),
    chunk=st.integers(1, 20),
)
def test_rank_equals_brute_force_with_ties_repeats_and_any_chunk(scores, target, seen, chunk):
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in seen])])
    item = np.array([i for s in seen for i in s], dtype=np.int32)
    removed = metrics.removed_pairs(offsets, item)
    found = metrics.ranks_of(scores, target, removed, catalogue_chunk=chunk)
    assert found.tolist() == [
        brute_force_rank(*row) for row in zip(scores, target, seen, strict=True)
    ]


class Levels:
    """A network whose scores have few levels, so that many items tie."""

    def __init__(self, num_items):
        rng = np.random.default_rng(4)
        self.table = rng.integers(0, 3, (num_items, num_items)).astype(np.float32)

    def retrieve(self, histories):
        return self.table[histories.item[histories.offsets[1:] - 1]]


@pytest.mark.parametrize("remove", [True, False])
def test_early_stopping_counts_ties_and_repeats_as_the_report_does(remove, monkeypatch):
    log = random_log(5, num_items=40)
    log = replace(log, meta=replace(log.meta, remove_history=remove))
    network = Levels(log.meta.num_items)
    monkeypatch.setattr(validation, "Scorer", lambda model, *_: model)
    measured = validation.Validation(log, max_history=5, num_queries=10**6, num_labelled=0, seed=0)(
        network, None
    )
    queries = protocols.next_item(log, VALIDATION)
    (outcomes,) = retrieval.run(
        log,
        queries,
        {"levels": network},
        load_config().evaluate,
        max_history=5,
        title="",
    )
    expected = metrics.retrieval_metrics(outcomes["levels"].ranks, [10])
    assert measured == {
        f"validation_{name}": pytest.approx(expected[name].mean()) for name in ("hr@10", "ndcg@10")
    }


def test_constant_scorer_lands_in_the_middle():
    scores = np.zeros((1, 1001 + FIRST_ITEM), dtype=np.float32)
    assert metrics.ranks_of(scores, np.array([7]), None, **NO_CHUNKS).tolist() == [501]


def test_target_unknown_to_the_vocabulary_ranks_behind_all():
    scores = np.array([[9.0, 9.0, 1.0, 2.0]], dtype=np.float32)
    assert metrics.ranks_of(scores, np.array([1]), None, **NO_CHUNKS).tolist() == [3]


def test_nan_scores_are_refused():
    scores = np.array([[0.0, 0.0, np.nan, 1.0]], dtype=np.float32)
    with pytest.raises(ValueError, match="NaN"):
        metrics.ranks_of(scores, np.array([3]), None, **NO_CHUNKS)


def test_removed_pairs_name_each_item_seen_once_and_no_reserved_one():
    query, item = metrics.removed_pairs(np.array([0, 4, 6]), np.array([5, 5, 3, 1, 4, 2]))
    expected = [(0, 3), (0, 5), (1, 2), (1, 4)]
    assert list(zip(query.tolist(), item.tolist(), strict=True)) == expected


def test_a_repeat_that_is_removed_is_a_miss_at_every_cutoff():
    scores = np.array([[0.0, 0.0, 9.0, 1.0]], dtype=np.float32)
    removed = (np.array([0]), np.array([2]))
    ranks = metrics.ranks_of(scores, np.array([2]), removed, **NO_CHUNKS)
    found = metrics.retrieval_metrics(ranks, [1, 10**6])
    assert [found[name].tolist() for name in ("hr@1", f"hr@{10**6}")] == [[0.0], [0.0]]
    assert found["mrr"].item() < 1e-9


def test_top_items_are_the_sorted_catalogue_without_seen_and_reserved():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5, 40)).astype(np.float32)
    removed = (np.array([0, 0, 3]), np.array([5, 9, 20]))
    expected = []
    for q in range(5):
        banned = {0, 1} | {int(i) for r, i in zip(*removed, strict=True) if r == q}
        order = sorted((i for i in range(40) if i not in banned), key=lambda i: -scores[q, i])
        expected.append(order[:7])
    assert metrics.top_items(scores, removed, 7).tolist() == expected


@pytest.mark.parametrize("k", [1, 3, 20, 400])
@pytest.mark.parametrize("num_items", [3, 17, 128, 1001])
def test_equal_scores_stand_in_order_of_item_wherever_the_cut_is(num_items, k):
    rng = np.random.default_rng(num_items + k)
    scores = rng.integers(0, 4, size=(6, num_items)).astype(np.float32)
    expected = [
        sorted(range(metrics.FIRST_ITEM, num_items), key=lambda i: (-row[i], i))[:k]
        for row in scores
    ]
    assert metrics.top_items(scores, None, k).tolist() == expected


def test_top_items_leave_places_empty_when_the_catalogue_is_used_up():
    scores = np.zeros((1, 5), dtype=np.float32)
    removed = (np.array([0, 0]), np.array([2, 4]))
    assert metrics.top_items(scores, removed, 3).tolist() == [[3, -1, -1]]


@pytest.mark.parametrize("k", [1, 5, 10])
def test_retrieval_metrics_equal_ir_measures(k):
    rng = np.random.default_rng(k)
    num_queries, num_items = 60, 30
    scores = rng.permuted(np.tile(np.arange(num_items + FIRST_ITEM), (num_queries, 1)), axis=1)
    target = rng.integers(FIRST_ITEM, num_items + FIRST_ITEM, num_queries)
    ranks = metrics.ranks_of(scores.astype(np.float32), target, None, **NO_CHUNKS)
    ours = metrics.retrieval_metrics(ranks, [k])
    qrels = [ir_measures.Qrel(str(q), str(t), 1) for q, t in enumerate(target)]
    run = [
        ir_measures.ScoredDoc(str(q), str(i), float(scores[q, i]))
        for q in range(num_queries)
        for i in range(FIRST_ITEM, num_items + FIRST_ITEM)
    ]
    theirs = ir_measures.calc_aggregate([R @ k, nDCG @ k, RR], qrels, run)
    np.testing.assert_allclose(
        [ours[f"hr@{k}"].mean(), ours[f"ndcg@{k}"].mean(), ours["mrr"].mean()],
        [theirs[R @ k], theirs[nDCG @ k], theirs[RR]],
    )


@given(
    label=arrays(np.int8, 30, elements=st.integers(0, 1)),
    score=arrays(np.float32, 30, elements=st.sampled_from([0.1, 0.2, 0.2001, 0.9])),
    user=arrays(np.int64, 30, elements=st.integers(0, 4)),
)
@settings(deadline=None)
def test_auc_and_gauc_equal_scikit_learn_user_by_user(label, score, user):
    if 0 < label.sum() < len(label):
        assert metrics.auc(label, score) == pytest.approx(roc_auc_score(label, score))
    else:
        assert metrics.auc(label, score) is None
    areas, counts = [], []
    for one in range(5):
        mine = user == one
        if 0 < label[mine].sum() < mine.sum():
            areas.append(roc_auc_score(label[mine], score[mine]))
            counts.append(mine.sum())
    expected = float(np.average(areas, weights=counts)) if areas else None
    found = metrics.gauc(user, label, score)
    assert found is None if expected is None else found == pytest.approx(expected)


def test_auc_of_counts_equals_scikit_learn_with_weights_and_is_nan_without_a_class():
    rng = np.random.default_rng(6)
    positives, negatives = rng.integers(0, 4, (2, 5, 7))
    positives[4] = 0
    score = np.concatenate([np.arange(7)] * 2)
    label = np.repeat([1, 0], 7)
    expected = [
        roc_auc_score(label, score, sample_weight=np.concatenate(row))
        for row in zip(positives[:4], negatives[:4], strict=True)
    ]
    found = metrics.auc_of_counts(positives, negatives)
    np.testing.assert_allclose(found, [*expected, np.nan])


@given(shift=st.floats(-3, 3), scale=st.floats(0.1, 10))
def test_auc_knows_only_the_order(shift, scale):
    rng = np.random.default_rng(1)
    label, score = rng.integers(0, 2, 50), rng.integers(0, 20, 50).astype(np.float64)
    assert metrics.auc(label, score * scale + shift) == metrics.auc(label, score)


def test_log_loss_equals_scikit_learn():
    rng = np.random.default_rng(2)
    label, probability = rng.integers(0, 2, 100), rng.random(100)
    assert metrics.log_loss(label, probability).mean() == pytest.approx(
        sklearn_log_loss(label, probability)
    )


def test_log_loss_of_a_certain_wrong_answer_is_finite():
    assert np.isfinite(metrics.log_loss(np.array([1, 0]), np.array([0.0, 1.0]))).all()


def test_calibration_error_by_hand():
    # Two bins: predictions .2 and .4 with one of two positive, 1.0 with both positive.
    probability, label = np.array([0.2, 0.4, 1.0, 1.0]), np.array([1, 0, 1, 1])
    assert metrics.expected_calibration_error(label, probability, 2) == pytest.approx(
        0.5 * abs(0.3 - 0.5) + 0.5 * 0.0
    )


def test_calibrated_forecasts_have_a_small_error_and_overconfident_ones_a_large():
    rng = np.random.default_rng(3)
    probability = rng.random(20_000)
    label = (rng.random(20_000) < probability).astype(int)
    overconfident = (probability > 0.5).astype(float)
    assert metrics.expected_calibration_error(label, probability, 15) < 0.02
    assert metrics.expected_calibration_error(label, overconfident, 15) > 0.2


def test_coverage_and_head_share_by_hand():
    top = np.array([[2, 3], [2, -1]])
    head = np.array([False, False, True, False, False, False])
    assert metrics.coverage(top, 6) == 0.5
    assert metrics.head_share(top, head) == pytest.approx(2 / 3)
