"""Histories that end where training does, beside counts row by row, and what GAUC makes of them."""

import numpy as np
import pytest
from evaluation_log import make_log, random_log
from test_evaluate import CONFIG

from benchmarks.frozen_histories import frozen, measure
from hpgr.data.log import FIRST_ITEM, TEST, TRAIN, VALIDATION
from hpgr.evaluation import protocols


def test_a_frozen_query_sees_the_training_events_of_its_user():
    log = random_log(2, split="global-time")
    candidates = protocols.labelled(log, VALIDATION)
    queries = frozen(log, candidates)
    for user, end, now in zip(queries.user, queries.end, candidates.end, strict=True):
        own = np.arange(log.user_offsets[user], log.user_offsets[user + 1])
        seen = own[own < now]
        assert np.arange(own[0], end).tolist() == seen[log.split[seen] == TRAIN].tolist()
    assert (queries.end < candidates.end).any()


def test_gauc_is_below_a_half_for_a_user_mean_that_learns_between_few_candidates():
    """Every user likes half of all, so nothing can be known."""
    random = np.random.default_rng(0)
    items = random.integers(FIRST_ITEM, 30, (400, 8))
    labels = random.integers(0, 2, items.shape)
    users = [
        [(int(i), 10**9 + 100 * n, int(y)) for n, (i, y) in enumerate(zip(*row, strict=True))]
        for row in zip(items, labels, strict=True)
    ]
    held_out = [np.repeat([TRAIN, VALIDATION, TEST], (4, 3, 1))] * len(users)
    log = make_log(users, split="global-time", num_items=30, held_out=held_out)
    found = measure(log, CONFIG.evaluate.model_copy(update={"fold_in_factors": 2}))["user_mean"]
    assert found["gauc"] < 0.4 and found["gauc_frozen"] == 0.5
    assert found["auc"] == pytest.approx(0.5, abs=0.06)
