"""Features of shown lists in the ranking head: repeats by brute force, and what a place may do."""

import numpy as np
import pytest
import torch
from test_leaks import CPU, catalogue, random_histories, settings, trained_looking

from hpgr.data.batches import events_before
from hpgr.data.log import UNKNOWN
from hpgr.model.interface import LISTS, build
from hpgr.model.list_features import NUM_PLACES, PRIOR_PLACE, ListFeatures, repeats
from hpgr.model.packed import pack, place_candidates
from hpgr.model.scoring import Scorer

NETWORKS = ["hpgr", "hstu", "mtgr", "sasrec"]


def test_repeats_are_those_of_the_visible_events():
    histories = random_histories([20, 0, 7], seed=1)
    histories.item[:] = histories.item % 5 + 2
    user, row = np.array([0, 0, 0, 0, 1, 2, 2]), np.array([0, 15, 19, 19, 20, 22, 26])
    time = np.append(histories.timestamp, 0)[row] + 1
    visible = events_before(histories, user, time)
    item = np.array([3, 4, 2, UNKNOWN, 3, 5, 30])
    placed = place_candidates(histories, np.array([0, 4, 5, 7]), item, visible, time, CPU)
    found = repeats(pack(histories, CPU), placed).numpy()
    for n, (u, count) in enumerate(zip(user, visible, strict=True)):
        low = histories.offsets[u]
        seen = histories.item[low : low + count]
        times = int((seen == item[n]).sum()) if item[n] != UNKNOWN else 0
        age = count - np.flatnonzero(seen == item[n])[-1] if times else np.inf
        expected = [item[n] != UNKNOWN, np.log1p(times), times > 0, 1 / age]
        np.testing.assert_allclose(found[n], expected)
    assert (found[:, 2] == 1).sum() >= 3 and (found[:, 2] == 0).sum() >= 3


def test_each_place_starts_at_the_smoothed_log_odds_beyond_those_of_all():
    shown, taken = torch.zeros(NUM_PLACES), torch.zeros(NUM_PLACES)
    shown[:2], taken[:2] = torch.tensor([100.0, 300.0]), torch.tensor([60.0, 20.0])
    made = ListFeatures(6)
    made.start_from(shown, taken)
    odds = lambda p: np.log(p / (1 - p))  # noqa: E731
    for place in range(2):
        share = (taken[place] + PRIOR_PLACE * 0.2) / (shown[place] + PRIOR_PLACE)
        assert made.bias[place + 1].item() == pytest.approx(odds(share.item()) - odds(0.2), 1e-4)
    assert made.bias[0] == 0 and made.bias[3:].abs().max() < 1e-5


def scorer_of(name, *, lists=True):
    return Scorer(trained_looking(build(settings(name=name), catalogue(), ranking=True,
                                        lists=lists)), CPU, 40)  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_place_moves_a_score_and_those_beyond_the_last_count_as_it(name):
    scorer, histories = scorer_of(name), random_histories([12, 5], seed=2)
    offsets, items = np.array([0, 3, 6]), np.array([3, 4, 5, 3, 4, 5])

    def rank(*place):
        return scorer.rank(histories, offsets, items, np.array(place * 2))

    assert (rank(0, 1, 2) != rank(2, 1, 0)).tolist() == [True, False, True] * 2
    last = rank(*[NUM_PLACES - 1] * 3)
    np.testing.assert_array_equal(rank(NUM_PLACES, 10**6, NUM_PLACES - 1), last)
    np.testing.assert_array_equal(rank(0, 1, 2)[[1, 4]], rank(5, 1, 7)[[1, 4]])  # its own alone


@pytest.mark.parametrize("name", NETWORKS)
def test_candidates_without_places_are_served_as_not_known(name):
    scorer, histories = scorer_of(name), random_histories([12, 5], seed=2)
    offsets, items = np.array([0, 3, 6]), np.array([3, 4, 5, 3, 4, 5])
    plain = scorer.rank(histories, offsets, items)
    np.testing.assert_array_equal(scorer.rank(histories, offsets, items, np.full(6, -1)), plain)
    np.testing.assert_allclose(scorer.read(histories).rank(offsets, items)[0], plain, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_they_are_drawn_behind_all_other_weights(name):
    """So a log without lists trains as it did before there were any."""
    weights = []
    for lists in (False, True):
        torch.manual_seed(0)
        model = build(settings(name=name), catalogue(), ranking=True, lists=lists)
        weights.append(model.state_dict())
    added = weights[1].keys() - weights[0].keys()
    assert added and all(weight.startswith(LISTS) for weight in added)
    assert all(torch.equal(weight, weights[1][key]) for key, weight in weights[0].items())
