"""AUC and GAUC for early stopping against the events of each user one by one."""

import numpy as np
import pytest
import torch
from evaluation_log import random_log
from sklearn.metrics import roc_auc_score
from test_bounded import long_user_log

from hpgr.data.log import VALIDATION
from hpgr.training.labelled_validation import LabelledValidation
from hpgr.training.losses import pairwise

ALL = {"num_events": 10**9, "seed": 0}


def score(seen, item):
    return len(seen) % 7 + item % 5


class Recorder:
    """Stands for a scorer: scores by what a candidate sees, and keeps what it was given."""

    def rank_rows(self, histories, rows):
        query = np.repeat(np.arange(len(histories)), np.diff(rows.offsets))
        first = histories.offsets[query]
        self.seen = [histories.item[f : f + n] for f, n in zip(first, rows.visible, strict=True)]
        return np.array(
            [len(seen) % 7 + i % 5 for seen, i in zip(self.seen, rows.item, strict=True)]
        )


def visible_items(log, row):
    """Items of the events of the row's user strictly before its second."""
    user = np.searchsorted(log.user_offsets, row, "right") - 1
    past = np.arange(log.user_offsets[user], row)
    return log.item[past[log.timestamp[past] < log.timestamp[row]]]


def test_candidates_see_the_newest_events_strictly_before_their_second():
    log, scorer = long_user_log(events=300, held_out=100), Recorder()
    validation = LabelledValidation(log, max_history=20, **ALL)
    validation(scorer)
    assert len(validation.rows) == len(scorer.seen) > 40
    for row, seen in zip(validation.rows, scorer.seen, strict=True):
        past = visible_items(log, row)
        assert 10 <= len(seen) <= 20
        assert seen.tolist() == past[len(past) - len(seen) :].tolist()


def test_scores_are_those_of_new_and_returning_users_apart():
    log, scorer = random_log(3, split="global-time"), Recorder()
    validation = LabelledValidation(log, max_history=50, **ALL)
    found = validation(scorer)
    user = log.user_of_event()
    rows = [r for r in np.flatnonzero(log.split == VALIDATION) if r > log.user_offsets[user[r]]]
    scores = np.array([score(visible_items(log, r), log.item[r]) for r in rows])
    label, user = log.label[rows], user[rows]
    trained = {u for u in user if (log.split[log.user_offsets[u]] != VALIDATION)}
    new = np.array([u not in trained for u in user])
    areas, weights = [], []
    for u in np.unique(user):
        own = user == u
        if 0 < label[own].sum() < own.sum():
            areas.append(roc_auc_score(label[own], scores[own]))
            weights.append(own.sum())
    expected = {
        "validation_auc_new": roc_auc_score(label[new], scores[new]),
        "validation_auc_returning": roc_auc_score(label[~new], scores[~new]),
        "validation_gauc": np.average(areas, weights=weights),
    }
    expected["validation_ranking"] = np.mean(list(expected.values()))
    expected["validation_auc"] = roc_auc_score(label, scores)
    assert found == {name: pytest.approx(value) for name, value in expected.items()}


def test_whole_users_are_drawn_until_there_are_enough_events():
    log = random_log(3, split="global-time")
    everything = LabelledValidation(log, max_history=50, **ALL)
    some = LabelledValidation(log, max_history=50, num_events=len(everything.rows) // 3, seed=0)
    assert len(everything.rows) // 3 <= len(some.rows) < len(everything.rows)
    for u in np.unique(some.user):
        assert (some.user == u).sum() == (everything.user == u).sum()


def test_the_pairwise_loss_is_the_mean_over_pairs_of_a_window_that_differ():
    torch.manual_seed(0)
    logits, label = torch.tensor([0.5, -1.0, 2.0, 0.3]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    other = torch.tensor([9.0, -9.0, 3.0])  # liked alike: no pair
    margins = torch.stack([logits[i] - logits[j] for i in (0, 3) for j in (1, 2)])
    copies = 5000
    offsets = torch.cat([torch.tensor([0]), torch.tensor([4, 3]).repeat(copies).cumsum(0)])
    found = pairwise(
        torch.cat([logits, other]).repeat(copies),
        torch.cat([label, torch.ones(3)]).repeat(copies),
        offsets,
    )
    expected = torch.nn.functional.softplus(-margins).mean()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
    assert pairwise(other, torch.ones(3), torch.tensor([0, 3])) == 0
