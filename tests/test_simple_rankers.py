"""Fold-in and trees against brute force, later events and planted truths."""

from dataclasses import replace

import numpy as np
import pytest
from evaluation_log import make_log, random_log
from scipy.special import logit
from test_evaluate import CONFIG

from hpgr.data.log import FIRST_ITEM, TEST, TRAIN, VALIDATION, EventLog
from hpgr.evaluation import protocols, ranking_features
from hpgr.evaluation.fold_in import Factors, FoldIn
from hpgr.evaluation.ranking import mean_models
from hpgr.evaluation.ranking_features import FOLDS, RankingFeatures
from hpgr.evaluation.simple_rankers import SimpleRankers
from hpgr.evaluation.trees import at_most
from hpgr.metrics import auc
from hpgr.training import calibration

SETTINGS = CONFIG.evaluate.model_copy(update={"fold_in_factors": 3})


def changed(log, **arrays) -> EventLog:
    return replace(log, **arrays)


def planted(num_users=120, num_items=40, length=30) -> EventLog:
    """Users like one of two kinds of items, which no mean of items or users shows."""
    rng = np.random.default_rng(0)
    users, parts = [], []
    for u in range(num_users):
        items = rng.permutation(num_items)[:length]
        taste = rng.choice([-1, 1])
        liked = rng.random(length) < np.where((items % 2) * 2 - 1 == taste, 0.9, 0.1)
        time = 10**9 + u + 1000 * np.arange(length)
        users.append(list(zip((items + FIRST_ITEM).tolist(), time.tolist(), liked, strict=True)))
        # Later users have no training event.
        known = np.repeat([TRAIN, VALIDATION, TEST], (20, 5, 5))
        parts.append(known if u < 80 else np.repeat([VALIDATION, TEST], (15, 15)))
    return make_log(users, split="global-time", num_items=num_items + FIRST_ITEM, held_out=parts)


def with_categories(log) -> EventLog:
    """Item i is of the categories i mod 3 and i mod 2 + 3, counted from 1."""
    item = np.arange(log.meta.num_items)
    category = np.stack([item % 3 + 1, item % 2 + 4], axis=1).ravel().astype(np.int32)
    offsets = 2 * np.arange(log.meta.num_items + 1, dtype=np.int64)
    meta = replace(log.meta, num_categories=6)
    return changed(log, category=category, category_offsets=offsets, meta=meta)


@pytest.fixture(scope="module")
def log():
    return with_categories(random_log(5, split="global-time"))


@pytest.fixture(scope="module")
def fold_in(log):
    return FoldIn(Factors.fit(log, 3, seed=0), 0.9, slope=1.5, intercept=0.2)


def test_the_fold_in_equals_normal_equations_solved_candidate_by_candidate(log, fold_in):
    factors = fold_in.factors
    queries = protocols.labelled(log, TEST)
    found = fold_in.probability(log, queries)
    user, user_of_event = queries.candidate_user(), log.user_of_event()
    empty = 0
    for c, (row, item) in enumerate(zip(queries.row, queries.item, strict=True)):
        past = np.flatnonzero((user_of_event == user[c]) & (log.timestamp < log.timestamp[row]))
        empty += not len(past)
        weight = fold_in.decay ** np.arange(len(past))[::-1]
        design = factors.factor[log.item[past]]
        residual = factors.value[log.action[past]] - factors.bias[log.item[past]]
        # Ridge regression on rows scaled by the root of their weight, the prior as rows too.
        root = np.sqrt(weight / factors.noise)[:, None]
        rows = np.vstack([design * root, np.eye(3)])
        expected = factors.hint[log.item[past]].sum(0) / np.sqrt(max(1, len(past)))
        right = np.concatenate([residual * root[:, 0], expected])
        taste = np.linalg.lstsq(rows, right, rcond=None)[0]
        own = factors.factor[item]
        variance = own @ np.linalg.pinv(rows.T @ rows) @ own + factors.noise
        score = (factors.bias[item] + own @ taste) / np.sqrt(variance)
        assert found[c] == pytest.approx(1 / (1 + np.exp(-(1.5 * score + 0.2))))
    assert empty < len(found)


def test_events_without_a_value_are_no_evidence(log, fold_in):
    blank = replace(fold_in.factors, valued=np.zeros_like(fold_in.factors.valued))
    (belief, *_) = FoldIn(blank, 0.9).beliefs(log, protocols.labelled(log, TEST))
    assert not belief.mean.any()


@pytest.fixture(scope="module")
def fitted(log):
    return SimpleRankers(log, SETTINGS)


@pytest.mark.parametrize("name", ["fold_in", "trees"])
def test_nothing_of_the_same_second_or_later_moves_a_prediction(log, fitted, name):
    """Other items, actions and labels from the candidate's second on, and no event after it."""
    model = getattr(fitted, name)
    queries = protocols.labelled(log, TEST)
    before = model.probability(log, queries)
    user_of_event = log.user_of_event()
    rng, moved = np.random.default_rng(0), 0
    for q in range(0, len(queries), 3):
        hidden = (user_of_event == queries.user[q]) & (log.timestamp >= queries.request_time[q])
        hidden &= log.split == TEST  # the fit holds the rest
        others = {
            "item": np.where(hidden, rng.permutation(log.item), log.item),
            "action": np.where(hidden, 3 - log.action, log.action),
            "label": np.where(hidden, 1 - log.label, log.label),
        }
        part = queries.take(slice(q, q + 1))
        own = slice(queries.offsets[q], queries.offsets[q + 1])
        after = model.probability(changed(log, **others), part)
        np.testing.assert_allclose(after, before[own], rtol=1e-9)
        seen = (user_of_event == queries.user[q]) & (log.timestamp < queries.request_time[q])
        earlier = changed(log, action=np.where(seen, 3 - log.action, log.action))
        moved += not np.allclose(model.probability(earlier, part), before[own])
    assert moved  # what was before does speak


@pytest.mark.parametrize("name", ["fold_in", "trees"])
def test_the_test_split_plays_no_part_in_a_fit(log, fitted, name):
    hidden = log.split == TEST
    blank = changed(
        log,
        item=np.where(hidden, FIRST_ITEM, log.item),
        action=np.where(hidden, 1, log.action),
        label=np.where(hidden, 0, log.label),
    )
    asked = protocols.labelled(log, VALIDATION)
    one = getattr(fitted, name).probability(log, asked)
    other = getattr(SimpleRankers(blank, SETTINGS), name).probability(blank, asked)
    np.testing.assert_array_equal(one, other)


def test_features_of_a_training_event_do_not_hold_its_label(log, fold_in):
    queries = protocols.labelled(log, TRAIN)
    before = RankingFeatures(log, fold_in, prior_events=5.0).table(log, queries)
    for c in range(0, len(queries.row), 25):
        label, action = log.label.copy(), log.action.copy()
        row = queries.row[c]
        label[row], action[row] = 1 - label[row], 3 - action[row]
        other = changed(log, label=label, action=action)
        features = RankingFeatures(other, fold_in, prior_events=5.0)
        features.common = float(np.clip(log.label[log.split == TRAIN].mean(), 1e-3, 1 - 1e-3))
        after = features.table(other, protocols.labelled(other, TRAIN))
        np.testing.assert_allclose(after[c], before[c], rtol=1e-5)


def test_item_statistics_leave_out_the_tenth_of_users_that_a_training_event_is_of(log, fold_in):
    features = RankingFeatures(log, fold_in, prior_events=5.0)
    train, fold = log.split == TRAIN, log.user_of_event() % FOLDS
    for split in (TRAIN, TEST):
        queries = protocols.labelled(log, split)
        table, user = features.table(log, queries), queries.candidate_user()
        for c in range(0, len(queries.row), 7):
            same = train & (log.item == queries.item[c])
            if split == TRAIN:
                same &= fold != user[c] % FOLDS
            share = (log.label[same].sum() + 5 * log.label[train].mean()) / (same.sum() + 5)
            value = fold_in.factors.value[log.action[same]].sum() / (same.sum() + 5)
            expected = [np.log1p(same.sum()), np.log(share / (1 - share)), value]
            np.testing.assert_allclose(table[c, :3], expected, atol=1e-5)


def test_means_over_like_events_equal_loops(log, fold_in):
    features = RankingFeatures(log, fold_in, prior_events=5.0)
    queries, factors = protocols.labelled(log, TEST), fold_in.factors
    table, user = features.table(log, queries), queries.candidate_user()
    user_of_event = log.user_of_event()
    categories = [set(log.category[2 * i : 2 * i + 2].tolist()) for i in range(log.meta.num_items)]
    dim = factors.factor.shape[1]
    same_item = table.shape[1] - 1 - 2 * dim - 2  # the last two before factors and the prediction
    for c in range(0, len(queries.row), 5):
        item = queries.item[c]
        past = np.flatnonzero(
            (user_of_event == user[c]) & (log.timestamp < log.timestamp[queries.row[c]])
        )
        seen = log.item[past]
        residual = factors.value[log.action[past]] - factors.bias[seen]
        mean = residual.sum() / (len(past) + 5)
        shared = np.array([len(categories[item] & categories[other]) for other in seen])
        expected = []
        for weight in (shared, (seen == item).astype(int)):
            total = weight.sum()
            expected += [(weight * (residual - mean)).sum() / (total + 2), np.log1p(total)]
        found = table[c, same_item - 2 : same_item + 2]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_nearest_events_speak_by_the_kernel_of_their_cosine(log, fold_in, monkeypatch):
    monkeypatch.setattr(ranking_features, "NEAREST", 3)
    features = RankingFeatures(log, fold_in, prior_events=5.0)
    queries, factors = protocols.labelled(log, TEST), fold_in.factors
    table, user = features.table(log, queries), queries.candidate_user()
    first = table.shape[1] - 1 - 2 * 3 - 4 - 6
    for c in range(0, len(queries.row), 5):
        past = np.flatnonzero(
            (log.user_of_event() == user[c]) & (log.timestamp < log.timestamp[queries.row[c]])
        )
        residual = factors.value[log.action[past]] - factors.bias[log.item[past]]
        own, seen = factors.factor[queries.item[c]], factors.factor[log.item[past]]
        cosine = seen @ own / np.linalg.norm(seen, axis=1) / np.linalg.norm(own)
        near = np.argsort(-cosine)[:3]
        if len(cosine) > 3 and np.isclose(*np.sort(-cosine)[2:4]):
            continue  # the same item twice on the edge
        mean = residual.sum() / (len(past) + 5)
        for k, kernel in enumerate((8.0, 16.0)):
            weight = np.exp(kernel * (cosine[near] - 1))
            total = weight.sum()
            expected = [(weight * (residual[near] - mean)).sum() / (total + 2), np.log1p(total)]
            np.testing.assert_allclose(
                table[c, first + 3 * k : first + 3 * k + 2], expected, atol=1e-4
            )


def test_both_find_a_taste_that_no_mean_shows():
    log = planted()
    queries = protocols.labelled(log, TEST)
    simple = SimpleRankers(log, SETTINGS)
    found = {n: auc(queries.label, p) for n, p in simple.probabilities(queries).items()}
    assert list(found)[:3] == ["boosted_trees", "fold_in", "item_plus_user_mean"]
    assert found["item_plus_user_mean"] < 0.6
    assert min(found["boosted_trees"], found["fold_in"]) > 0.75
    assert any("decay" in note and "fold-in" in note for note in simple.notes)


def test_every_model_is_calibrated_on_validation_as_a_network_is(log, fitted):
    def models(queries):
        means = mean_models(log, queries, prior_events=SETTINGS.prior_events)
        return means | {
            "fold_in": fitted.fold_in.probability(log, queries),
            "boosted_trees": fitted.trees.probability(log, queries),
        }

    validation, test = (protocols.labelled(log, split) for split in (VALIDATION, TEST))
    before, found = models(test), fitted.probabilities(test)
    assert set(found) == set(before)
    for name, probability in models(validation).items():
        slope, shift = calibration.fitted(probability, validation.label)
        np.testing.assert_allclose(logit(found[name]), slope * logit(before[name]) + shift)
        assert slope != 1


def test_trees_can_be_left_out_and_one_label_leaves_the_means():
    log = random_log(2, split="global-time")
    queries = protocols.labelled(log, TEST)
    none = SimpleRankers(log, SETTINGS.model_copy(update={"tree_events": 0}))
    assert next(iter(none.probabilities(queries))) == "fold_in"
    assert any("evaluate.tree_events" in note for note in none.notes)
    same = SimpleRankers(changed(log, label=np.ones_like(log.label)), SETTINGS)
    assert set(same.probabilities(queries)) == {"item_mean", "user_mean", "item_plus_user_mean"}


def test_validation_of_one_label_or_none_ends_no_boosting_with_an_error():
    log = random_log(2, split="global-time")
    for other in (
        changed(log, label=np.where(log.split == VALIDATION, 1, log.label)),
        changed(log, split=np.where(log.split == VALIDATION, TEST, log.split)),
    ):
        probability = SimpleRankers(other, SETTINGS).probabilities(protocols.labelled(other, TEST))
        assert "boosted_trees" in probability


def test_a_sample_keeps_whole_queries_in_order_within_the_limit(log):
    queries = protocols.labelled(log, TRAIN)
    picked = at_most(queries, 50, seed=0)
    assert 45 < len(picked.item) <= 50
    whole = {tuple(r) for r in np.split(queries.row, queries.offsets[1:-1])}
    assert {tuple(r) for r in np.split(picked.row, picked.offsets[1:-1])} <= whole
    assert (np.diff(picked.row) > 0).all()
    assert at_most(queries, len(queries.item), seed=0) is queries
