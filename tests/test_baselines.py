"""Counting models against loops that say the same thing slowly."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_log import make_log, random_log

from hpgr.config import load_config
from hpgr.data.log import FIRST_ITEM, TEST, TRAIN, EventLog
from hpgr.evaluation import baselines, protocols, ranking, retrieval

SETTINGS = load_config(Path(__file__).parents[1] / "params.yaml").evaluate


@pytest.fixture(scope="module")
def log():
    return random_log(0)


@pytest.fixture(scope="module")
def asked(log):
    return protocols.next_item(log, TEST).histories(log, 200)


def train_events(log):
    """(item, timestamp) lists of every user's training events."""
    for start, stop in zip(log.user_offsets[:-1], log.user_offsets[1:], strict=True):
        rows = [r for r in range(start, stop) if log.split[r] == TRAIN]
        yield [(int(log.item[r]), int(log.timestamp[r])) for r in rows]


def items_of(histories, q):
    return histories.item[histories.offsets[q] : histories.offsets[q + 1]].tolist()


def close(found, expected):
    # The models add a trace of popularity below 1e-8, which breaks ties and nothing else.
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)


def without_held_out(log: EventLog) -> EventLog:
    """The same log with other items wherever the event is not for training."""
    item = np.where(log.split == TRAIN, log.item, FIRST_ITEM)
    return EventLog(**{**log.__dict__, "item": item.astype(np.int32)})


def test_popularity_counts_training_events(log, asked):
    expected = np.zeros(log.meta.num_items)
    for events in train_events(log):
        for item, _ in events:
            expected[item] += 1
    assert (baselines.Popularity(log).retrieve(asked) == expected).all()


def test_recency_decays_by_day_and_ignores_the_day_of_the_request(log, asked):
    first = min(t for events in train_events(log) for _, t in events)
    expected = np.zeros((len(asked), log.meta.num_items))
    for q, request in enumerate(asked.request_time):
        for events in train_events(log):
            for item, time in events:
                age = (request - first) // 86400 - (time - first) // 86400
                if age > 0:
                    expected[q, item] += 0.5 ** (age / 7.0)
    close(baselines.Recency(log, half_life_days=7.0).retrieve(asked), expected)


def test_transitions_equal_counted_successors(log, asked):
    decay, reach = 0.7, 4
    table = defaultdict(float)
    for events in train_events(log):
        for i, (item, _) in enumerate(events):
            for gap in range(1, reach + 1):
                if i + gap < len(events):
                    table[item, events[i + gap][0]] += decay ** (gap - 1)
    total = defaultdict(float)
    for (item, _), count in table.items():
        total[item] += count
    expected = np.zeros((len(asked), log.meta.num_items))
    for q in range(len(asked)):
        for age, item in enumerate(items_of(asked, q)[::-1][:reach]):
            for (left, right), count in table.items():
                if left == item:
                    expected[q, right] += decay**age * count / total[left]
    close(baselines.Transitions(log, decay=decay, events=reach).retrieve(asked), expected)


def test_ease_weights_solve_the_penalised_least_squares_column_by_column(log):
    # The definition of EASE: minimise |x_j - X b|^2 + ridge |b|^2 with b_j = 0.
    ridge = 5.0
    matrix = np.zeros((log.meta.num_users, log.meta.num_items))
    for user, events in enumerate(train_events(log)):
        for item, _ in events:
            matrix[user, item] = 1.0
    weights = baselines.Ease.fit(log, ridge=ridge)
    for j in (2, 9, 20):
        others = np.delete(np.arange(log.meta.num_items), j)
        x = matrix[:, others]
        solution = np.linalg.solve(x.T @ x + ridge * np.eye(len(others)), x.T @ matrix[:, j])
        np.testing.assert_allclose(weights[others, j], solution, atol=1e-5)
        assert weights[j, j] == 0


def test_ease_scores_are_the_decayed_history_times_the_weights(log, asked):
    weights = np.random.default_rng(0).normal(size=(log.meta.num_items,) * 2).astype(np.float32)
    expected = np.zeros((len(asked), log.meta.num_items))
    for q in range(len(asked)):
        for age, item in enumerate(items_of(asked, q)[::-1]):
            expected[q] += 0.8**age * weights[item]
    close(baselines.Ease(weights, decay=0.8).retrieve(asked), expected)


@pytest.mark.parametrize("name", ["popularity", "recency", "transitions", "ease"])
def test_held_out_events_do_not_move_a_fitted_model(log, asked, name):
    models, _ = baselines.all_baselines(log, SETTINGS)
    others, _ = baselines.all_baselines(without_held_out(log), SETTINGS)
    assert (models[name][0].retrieve(asked) == others[name][0].retrieve(asked)).all()


def test_a_query_without_history_falls_back_to_popularity_order(log):
    empty = protocols.next_item(log, TEST).take(slice(0, 1)).histories(log, 0)
    scores = baselines.Transitions(log, decay=0.7, events=3).retrieve(empty)[0]
    count = baselines.train_counts(log)
    assert (np.argsort(-scores, kind="stable") == np.argsort(-count, kind="stable")).all()


def test_a_catalogue_too_wide_for_ease_is_said_and_not_tried(log):
    models, notes = baselines.all_baselines(log, SETTINGS.model_copy(update={"ease_max_items": 3}))
    assert "ease" not in models
    assert "ease_max_items" in notes[0]


def test_the_decay_that_is_best_on_validation_is_chosen():
    # Independent pairs: only the newest event says what follows, older ones vote for their own.
    rng = np.random.default_rng(0)
    users = []
    for _ in range(60):
        firsts = FIRST_ITEM + 2 * rng.permutation(10)[:5]
        items = np.stack([firsts, firsts + 1], axis=1).ravel()[:9]
        users.append([(int(item), 10 * i, 1) for i, item in enumerate(items)])
    settings = SETTINGS.model_copy(update={"history_decays": (0.999, 0.01), "transition_events": 3})
    log = make_log(users)
    log = replace(log, meta=replace(log.meta, remove_history=False))
    chosen, notes = retrieval.tuned_baselines(log, settings, max_history=200)
    assert chosen["transitions"].decay == 0.01
    assert any("transitions: decay 0.01" in note for note in notes)


@pytest.mark.parametrize("seed", range(3))
def test_means_for_ranking_equal_pandas_style_loops(seed):
    log = random_log(seed, split="global-time")
    asked = protocols.labelled(log, TEST)
    prior = 5.0
    train = log.split == TRAIN
    common = log.label[train].mean()
    user_of_event = log.user_of_event()
    found = ranking.mean_models(log, asked, prior_events=prior)
    owner = np.repeat(np.arange(len(asked)), np.diff(asked.offsets))
    for c in range(0, len(asked.item), 3):
        q = owner[c]
        same = train & (log.item == asked.item[c])
        item = (log.label[same].sum() + prior * common) / (same.sum() + prior)
        past = (user_of_event == asked.user[q]) & (log.timestamp < asked.request_time[q])
        user = (log.label[past].sum() + prior * common) / (past.sum() + prior)
        odds = item / (1 - item) * user / (1 - user) / (common / (1 - common))
        assert found["item_mean"][c] == pytest.approx(item)
        assert found["user_mean"][c] == pytest.approx(user)
        assert found["item_plus_user_mean"][c] == pytest.approx(odds / (1 + odds))
