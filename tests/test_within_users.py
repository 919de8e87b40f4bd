"""Orders inside users beside scikit-learn's, user by user."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from benchmarks.within_users import PLACES, within_users


def test_means_over_users_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    user = random.integers(0, 60, 400)
    label, score = random.integers(0, 2, 400), random.random(400)
    label[user % 7 == 0] = 0  # users without a positive
    areas, gains = [], []
    for one in np.unique(user):
        own = label[user == one], score[user == one]
        if 0 < own[0].mean() < 1:
            areas.append(roc_auc_score(*own))
        alone = float(own[0][0])  # scikit-learn wants two documents
        gains.append(ndcg_score([own[0]], [own[1]], k=PLACES) if len(own[0]) > 1 else alone)
    assert min(gains) == 0
    found = within_users(user, label, score)
    assert found["user_auc"] == pytest.approx(np.mean(areas))
    assert found["user_ndcg@5"] == pytest.approx(np.mean(gains))
