"""Bootstrap: properties that hold for any data, scikit-learn as oracle."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from hpgr.evaluation import compare


def draw(samples=500, seed=0):
    return SimpleNamespace(bootstrap_samples=samples, seed=seed)


def means(user, values, **changes):
    return compare.bootstrap_means(user, values, draw(**changes))


def some_data(seed, columns=1):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 40, 200), rng.normal(size=(200, columns))


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_identical_systems_differ_by_nothing(seed):
    user, values = some_data(seed)
    replicates = means(user, np.hstack([values, values]))
    found = compare.estimate(0.0, replicates[:, 0] - replicates[:, 1])
    assert (found.low, found.high, found.p) == (0.0, 0.0, 1.0)


@given(shift=st.floats(-2, 2), seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_a_constant_shift_moves_every_replicate_by_itself(shift, seed):
    user, values = some_data(seed)
    np.testing.assert_allclose(means(user, values + shift), means(user, values) + shift, atol=1e-9)


def test_same_seed_same_replicates_and_another_seed_others():
    user, values = some_data(0)
    again, other = means(user, values), means(user, values, samples=500, seed=1)
    assert (means(user, values) == again).all()
    assert (again != other).any()


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        user = np.repeat(np.arange(60), 3)
        values = rng.normal(size=60)[user] + rng.normal(size=180)  # queries of a user resemble
        found = compare.estimate(
            values.mean(), means(user, values[:, None], samples=200, seed=seed)[:, 0]
        )
        covered += found.low <= 0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_users_are_resampled_whole():
    # Two users of one value each: a resample is one of three mixtures, never anything between.
    user, values = np.repeat([0, 1], 50), np.repeat([0.0, 1.0], 50)[:, None]
    assert set(np.unique(means(user, values))) == {0.0, 0.5, 1.0}


def test_resamples_draw_as_many_users_as_there_are(monkeypatch):
    monkeypatch.setattr(compare, "CELLS", 50)  # several blocks
    drawn = np.concatenate(list(compare.resamples(20, 101, 0)))
    assert drawn.shape == (101, 20)
    assert (drawn.sum(axis=1) == 20).all()


def test_auc_replicates_equal_scikit_learn_on_the_resampled_rows():
    rng = np.random.default_rng(5)
    user = rng.integers(0, 15, 120)
    label, score = rng.integers(0, 2, 120), rng.integers(0, 9, 120) / 9
    found = compare.bootstrap_auc(user, label, {"": score}, draw(20, seed=3))[""]
    (drawn,) = compare.resamples(15, 20, 3)
    expected = [roc_auc_score(label, score, sample_weight=d[user]) for d in drawn]
    np.testing.assert_allclose(found, expected)


def test_auc_replicates_without_both_classes_are_left_out_of_the_interval():
    user, label, score = np.array([0, 1]), np.array([0, 1]), np.array([0.1, 0.9])
    replicates = compare.bootstrap_auc(user, label, {"": score}, draw())[""]
    assert np.isnan(replicates).any()
    found = compare.estimate(1.0, replicates)
    assert (found.low, found.high) == (1.0, 1.0)


def test_p_is_small_for_a_clear_difference_and_never_zero():
    found = compare.estimate(1.0, np.linspace(0.5, 1.5, 999))
    assert found.p == pytest.approx(2 / 1000)
