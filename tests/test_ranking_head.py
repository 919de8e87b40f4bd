"""The ranking head before training: the smoothed means that its wide part stands for."""

import numpy as np
import torch
from scipy.stats import norm
from test_leaks import random_histories

from hpgr.data.batches import events_before
from hpgr.model.packed import pack, place_candidates
from hpgr.model.ranking_head import PRIOR_EVENTS, RankingHead
from hpgr.model.readout import PreferenceReadout
from hpgr.model.tastes import ItemFactors

CPU = torch.device("cpu")


def head():
    return RankingHead(4, num_items=50, num_actions=6)


def test_the_items_part_is_the_smoothed_log_odds_of_training():
    events, positive = torch.zeros(50), torch.zeros(50)
    events[[2, 3]], positive[[2, 3]] = torch.tensor([100.0, 2.0]), torch.tensor([80.0, 0.0])
    made = head()
    made.start_from(events, positive, None)
    rates = torch.sigmoid(made.item_bias)
    common = 80 / 102
    assert np.isclose(rates[2].item(), (80 + PRIOR_EVENTS * common) / (100 + PRIOR_EVENTS))
    assert np.isclose(rates[3].item(), PRIOR_EVENTS * common / (2 + PRIOR_EVENTS))
    assert np.isclose(rates[4].item(), common)


def test_a_fitted_bias_starts_at_the_chance_that_a_value_is_high():
    bias = torch.linspace(-1.5, 1.5, 50)
    none = torch.zeros(50, 2)
    factors = ItemFactors(none, bias, none, torch.zeros(6), torch.ones(6), noise=0.64)
    made = RankingHead(4, 50, 6, PreferenceReadout(50, 6, 2, num_anchors=4))
    made.start_from(torch.full((50,), 10.0), torch.full((50,), 5.0), factors)
    chance = torch.sigmoid(made.item_bias.detach()).numpy()
    assert np.allclose(chance, norm.cdf(bias.numpy() / 0.8), atol=0.01)


def test_the_users_part_is_the_shrunk_mean_of_the_visible_actions():
    made = head()
    with torch.no_grad():
        made.action_value.copy_(torch.randn(6, generator=torch.Generator().manual_seed(0)))
    histories = random_histories([20, 7], seed=1)
    user, row = np.array([0, 0, 1, 1]), np.array([0, 15, 20, 25])
    time = histories.timestamp[row]
    visible = events_before(histories, user, time)
    placed = place_candidates(
        histories, np.array([0, 2, 4]), np.array([2, 3, 4, 5]), visible, time, CPU
    )
    states = torch.randn(4, 4)
    logits = made(states, states, pack(histories, CPU), placed)
    values = made.action_value.detach().numpy()
    for number, (u, count) in enumerate(zip(user, visible, strict=True)):
        low = histories.offsets[u]
        seen = values[histories.action[low : low + count]]
        expected = made.scale * seen.sum() / (count + PRIOR_EVENTS)
        assert np.isclose(logits[number].item(), expected, atol=1e-5)
