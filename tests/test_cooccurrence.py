"""PPMI-SVD within sessions: counting one by one, a dense decomposition, planted groups."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from evaluation_log import random_log
from training_runs import log_with_categories, parameters

from hpgr.data.log import FIRST_ITEM, TRAIN, VALIDATION
from hpgr.model.catalogue import Catalogue
from hpgr.model.trunk import MaskedItemModel
from hpgr.training import cooccurrence
from hpgr.training.cooccurrence import SMOOTHING, WINDOW, directions, ppmi_svd, session_ppmi


@pytest.fixture
def log():
    """A log whose sessions interleave."""
    log = random_log(0, num_users=60)
    session = np.random.default_rng(0).integers(0, 2, len(log.item)).astype(np.int32)
    return replace(log, session=session)


def counted(log):
    """PPMI by counting every pair of events."""
    sessions = {}
    for row in np.flatnonzero(log.split == TRAIN):
        key = int(log.user_of_event()[row]), int(log.session[row])
        sessions.setdefault(key, []).append(int(log.item[row]))
    pairs = Counter()
    for items in sessions.values():
        for (i, a), (j, b) in combinations(enumerate(items), 2):
            if j - i <= WINDOW and a != b:
                pairs[a, b] += 1
                pairs[b, a] += 1
    total = Counter()
    for (a, _), count in pairs.items():
        total[a] += count
    mass, everything = sum(n**SMOOTHING for n in total.values()), sum(total.values())
    ppmi = np.zeros((log.meta.num_items, log.meta.num_items))
    for (a, b), count in pairs.items():
        joint, own = count / everything, total[a] / everything
        ppmi[a, b] = max(0.0, np.log(joint / (own * total[b] ** SMOOTHING / mass)))
    return ppmi


def test_ppmi_is_that_of_counting_one_by_one(log):
    assert session_ppmi(log, seed=0).to_dense().numpy() == pytest.approx(counted(log), abs=1e-5)


def test_vectors_are_those_of_a_dense_decomposition(log):
    left, scale, _ = np.linalg.svd(counted(log))
    expected = left[:, :4] * np.sqrt(scale[:4])
    found = ppmi_svd(log, 4, seed=0).numpy()
    assert np.abs(found) == pytest.approx(np.abs(expected), abs=1e-3)  # signs are free


def test_the_signs_of_a_processors_decomposition_do_not_matter(log, monkeypatch):
    expected, decompose = ppmi_svd(log, 4, seed=0), torch.svd_lowrank

    def other_signs(*args, **kwargs):
        left, scale, right = decompose(*args, **kwargs)
        sign = 1 - 2 * (torch.arange(len(scale)) % 2)
        return left * sign, scale, right * sign

    monkeypatch.setattr(torch, "svd_lowrank", other_signs)
    assert torch.equal(ppmi_svd(log, 4, seed=0), expected)


def test_held_out_events_change_nothing(log):
    item = log.item.copy()
    item[log.split != TRAIN] = FIRST_ITEM
    changed = ppmi_svd(replace(log, item=item), 4, seed=0)
    assert torch.equal(changed, ppmi_svd(log, 4, seed=0))


def test_the_callers_random_numbers_stay(log):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    ppmi_svd(log, 4, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_a_large_log_is_counted_on_users_drawn_from_it(log, monkeypatch):
    monkeypatch.setattr(cooccurrence, "MOST_EVENTS", int((log.split == TRAIN).sum()) // 2)
    some, again = (session_ppmi(log, seed=1).to_dense() for _ in range(2))
    assert torch.equal(some, again)
    one = log.user_of_event() == 7
    kept = replace(log, split=np.where(one, log.split, VALIDATION).astype(np.int8))
    monkeypatch.setattr(cooccurrence, "MOST_EVENTS", 12)
    assert session_ppmi(log, seed=1).values().numel() < np.count_nonzero(counted(log)) / 2
    assert session_ppmi(kept, seed=1).to_dense().numpy() == pytest.approx(counted(kept), abs=1e-5)


def test_a_log_whose_sessions_are_single_events_has_no_vectors(log):
    alone = replace(log, session=np.arange(len(log.item), dtype=np.int32))
    assert not ppmi_svd(alone, 4, seed=0).any()


def test_items_without_company_keep_their_direction_at_the_length_of_the_others():
    vectors, own = torch.randn(6, 4), torch.randn(6, 4)
    vectors[2] = 0
    found = directions(vectors, own)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(found[2], own[2] / own[2].norm())
    torch.testing.assert_close(found[3], vectors[3] / vectors[3].norm())


def test_stage_one_starts_its_items_there_and_leaves_the_others():
    log = log_with_categories()
    network = MaskedItemModel(parameters().model, Catalogue.of(log), mim_blocks=1)
    before = network.item_vectors().detach().clone()
    vectors = torch.zeros_like(before)
    vectors[5] = torch.randn(vectors.shape[1])
    network.start_items(vectors)
    found = network.item_vectors()
    assert torch.allclose(found[5], vectors[5], atol=1e-6)
    others = torch.arange(len(found)) != 5
    assert torch.equal(found[others], before[others])
