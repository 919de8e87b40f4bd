"""The preference read-out against formulas computed query by query, and the fit of its factors."""

import numpy as np
import pytest
import torch
from evaluation_log import make_log, random_log
from scipy.optimize import minimize
from scipy.stats import norm
from training_runs import parameters

import hpgr.model.discounting
from hpgr.data.batches import TrainingWindows
from hpgr.data.log import FIRST_ITEM, TEST, EventLog
from hpgr.model.catalogue import Catalogue
from hpgr.model.discounting import discounted_sums, product_sums
from hpgr.model.interface import build
from hpgr.model.packed import pack, place_candidates
from hpgr.model.readout import KERNELS, PreferenceReadout
from hpgr.model.standardise import Standardise
from hpgr.model.tastes import CLOCKS
from hpgr.training import item_factors
from hpgr.training.finetune import _optimizer
from hpgr.training.item_factors import fit_item_factors

DIM = 3
CPU = torch.device("cpu")


@pytest.fixture
def batch(small_log):
    windows = TrainingWindows(
        small_log, max_history=20, batch_tokens=200, num_candidates=None, random_windows=False,
        seed=0,
    )  # fmt: skip
    return windows.batch(windows.plan(0)[0], 0, 0)


@pytest.fixture
def placed(batch):
    rows = batch.candidates
    return place_candidates(batch.histories, rows.offsets, rows.item, rows.visible, rows.time, CPU)


@pytest.fixture
def readout(small_log):
    torch.manual_seed(0)
    module = PreferenceReadout(small_log.meta.num_items, 3, DIM, num_anchors=4)
    with torch.no_grad():
        module.factor.normal_()
        module.bias.normal_()
        module.hint.normal_()
        module.value.copy_(torch.tensor([0.0, -1.0, 0.7]))
        module.valued.copy_(torch.tensor([0.0, 1.0, 1.0]))
    return module


def test_every_event_of_a_window_is_a_candidate_that_sees_strictly_earlier_ones(batch):
    rows, histories = batch.candidates, batch.histories
    for b in range(len(histories)):
        past = slice(histories.offsets[b], histories.offsets[b + 1])
        own = slice(rows.offsets[b], rows.offsets[b + 1])
        assert rows.item[own].tolist() == [*histories.item[past], batch.target[past][-1]]
        before = [(histories.timestamp[past] < t).sum() for t in rows.time[own]]
        assert rows.visible[own].tolist() == before


@pytest.mark.parametrize("block", [2, 3, 32])
def test_sums_are_discounted_within_each_history(block, monkeypatch):
    """Up to a row, or to none; over rows, blocks of rows, blocks of those. Also the gradients."""
    monkeypatch.setattr(hpgr.model.discounting, "BLOCK", block)
    lengths = [1, 7, 0, 12, 1, 30 * block]
    position = torch.cat([torch.arange(n) for n in lengths])
    rows = torch.randn(len(position), 2, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    age = torch.arange(len(position))[:, None] - torch.arange(len(position))
    inside = (age >= 0) & (age <= position[:, None])
    end = torch.cat([torch.zeros(2, dtype=torch.long), torch.randperm(len(position)) + 1])
    summed = (rate ** age.clamp_min(0) * inside) @ rows
    expected = torch.nn.functional.pad(summed, (0, 0, 1, 0))[end]
    found = discounted_sums(rows, position, rate, end)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    grads = [torch.autograd.grad((out * weight).sum(), (rows, rate)) for out in (found, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("block", [2, 3, 32])
def test_products_are_summed_as_rows_are(block, monkeypatch):
    monkeypatch.setattr(hpgr.model.discounting, "BLOCK", block)
    position = torch.cat([torch.arange(n) for n in [1, 7, 0, 12, 1, 30 * block]])
    x, y = (torch.randn(len(position), n, dtype=torch.float64).requires_grad_() for n in (2, 3))
    rate = torch.tensor([0.8, 1.0], dtype=torch.float64, requires_grad=True)
    end = torch.cat([torch.zeros(2, dtype=torch.long), torch.randperm(len(position)) + 1])
    assert product_sums(x, y, position, rate, end[:0]).shape == (2, 0, 2, 3)
    rows = (x[:, :, None] * y[:, None]).flatten(1)
    expected = torch.stack([discounted_sums(rows, position, r, end) for r in rate])
    found = product_sums(x, y, position, rate, end).flatten(2)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    grads = [torch.autograd.grad((out * weight).sum(), (x, y, rate)) for out in (found, expected)]
    torch.testing.assert_close(*grads)


def test_the_fold_in_is_the_posterior_of_the_linear_gaussian_model(batch, placed, readout):
    packed = pack(batch.histories, CPU)
    anchors = readout.select(packed, placed)
    features = readout(packed, placed, *anchors).features.detach().numpy()
    factor, bias = readout.factor.detach().numpy(), readout.bias.detach().numpy()
    hint = readout.hint.detach().numpy()
    value = np.array([np.nan, -1.0, 0.7])
    for c in range(len(placed.item)):
        first, end = int(placed.first[c]), int(placed.end[c])
        items, actions = packed.item[first:end].numpy(), packed.action[first:end].numpy()
        age = np.arange(end - first)[::-1]
        candidate = factor[placed.item[c]]
        for number, clock in enumerate(CLOCKS):
            weight = clock**age
            precision = np.eye(DIM) + (factor[items].T * weight) @ factor[items]
            residual = value[actions] - bias[items]
            expected = hint[items].sum(0) / np.sqrt(max(1, len(items)))
            evidence = factor[items].T @ (weight * residual) + expected
            taste = np.linalg.solve(precision, evidence)
            variance = candidate @ np.linalg.solve(precision, candidate)
            mean, spread = features[c, 4 * number : 4 * number + 2]
            assert mean == pytest.approx(candidate @ taste, abs=2e-4)
            assert spread == pytest.approx(variance, abs=2e-4)


def test_anchors_are_the_nearest_items_and_speak_by_their_residuals(batch, placed, readout):
    packed = pack(batch.histories, CPU)
    anchor, cosine = readout.select(packed, placed)
    features = readout(packed, placed, anchor, cosine).features.detach().numpy()
    factor, bias = readout.factor.detach(), readout.bias.detach()
    value = torch.tensor([0.0, -1.0, 0.7])
    place = 4 * len(CLOCKS)
    for c in range(len(placed.item)):
        seen = torch.arange(int(placed.first[c]), int(placed.end[c]))
        near = torch.cosine_similarity(factor[placed.item[c]], factor[packed.item[seen]], dim=1)
        order = near.argsort(descending=True)[:4]
        kept = anchor[c][anchor[c] >= 0]
        torch.testing.assert_close(
            near[order].sort().values,
            torch.cosine_similarity(factor[placed.item[c]], factor[packed.item[kept]], dim=1)
            .sort()
            .values,
        )
        residual = value[packed.action[kept]] - bias[packed.item[kept]]
        weight = torch.exp(KERNELS[0] * (cosine[c][: len(kept)].detach() - 1))
        mean = features[c, place - 1]  # of the user, by the slowest clock
        expected = float((weight * (residual - mean)).sum() / (weight.sum() + 2))
        assert features[c, place] == pytest.approx(expected, abs=2e-4)


def test_nobody_reads_the_residuals_of_events_without_a_value(batch, placed, readout):
    packed = pack(batch.histories, CPU)
    with torch.no_grad():
        readout.valued.zero_()
    evidence = readout(packed, placed, *readout.select(packed, placed))
    assert evidence.logit.abs().max() == 0


def test_an_intervention_takes_anchors_away_or_draws_them(batch, placed, readout):
    packed = pack(batch.histories, CPU)
    chosen, _ = readout.select(packed, placed)
    readout.selector.mode = "none"
    assert (readout.select(packed, placed)[0] == -1).all()
    readout.selector.mode = "random"
    drawn, cosine = readout.select(packed, placed)
    there = drawn >= 0
    assert ((drawn < placed.end[:, None]) & (drawn >= placed.first[:, None]))[there].all()
    assert (there.any(1) == (placed.end > placed.first)).all()
    assert (drawn != chosen).any() and cosine.shape == drawn.shape


def test_features_are_standardised_by_the_batch_and_then_by_its_average():
    torch.manual_seed(0)
    module, rows = Standardise(2), torch.randn(4000, 2) * torch.tensor([3.0, 0.1]) + 5
    trained = module(rows)
    torch.testing.assert_close(trained.mean(0), torch.zeros(2), atol=0.02, rtol=0)
    torch.testing.assert_close(trained.std(0), torch.ones(2), atol=0.02, rtol=0)
    torch.testing.assert_close(module.eval()(rows), trained)  # the first batch is the average


def planted(seed: int, num_users: int = 300, num_items: int = 30) -> EventLog:
    """A log whose five actions follow planted factors."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 0.8, (num_users, 2)) @ rng.normal(0, 0.8, (2, num_items))
    truth += rng.normal(0, 0.5, num_items)
    users, actions, length = [], [], min(20, num_items - 2)
    for u in range(num_users):
        items = rng.permutation(num_items)[:length]
        value = truth[u, items] + rng.normal(0, 0.3, length)
        actions.append(np.clip(np.round(value * 1.5) + 3, 1, 5).astype(int))
        users.append([(int(i) + FIRST_ITEM, 10**9 + n, 1) for n, i in enumerate(items)])
    log = make_log(users, num_items=num_items + FIRST_ITEM)
    values = np.array([np.nan, 1, 2, 3, 4, 5], dtype=np.float32)
    action = np.concatenate(actions).astype(np.int16)
    return EventLog(**{**log.__dict__, "action": action, "action_value": values})


def test_fitted_factors_predict_values_of_users_that_were_not_fitted():
    log = planted(0, num_users=400)
    later = log.user_of_event() >= 300
    kept = EventLog(**{**log.__dict__, "split": np.where(later, TEST, log.split)})
    found = fit_item_factors(kept, 2, seed=0)
    factor, bias = found.factor.numpy(), found.bias.numpy()
    error, plain = [], []
    for u in range(300, 400):
        rows = slice(log.user_offsets[u], log.user_offsets[u + 1])
        items, value = log.item[rows], found.value.numpy()[log.action[rows]]
        seen, asked = items[:15], items[15:]
        precision = np.eye(2) + factor[seen].T @ factor[seen] / found.noise
        taste = np.linalg.solve(precision, factor[seen].T @ (value[:15] - bias[seen]) / found.noise)
        error.append(np.square(value[15:] - bias[asked] - factor[asked] @ taste).mean())
        plain.append(np.square(value[15:] - bias[asked]).mean())
    assert np.mean(error) < 0.6 * np.mean(plain)


def evidence(user, item, value, items, prior):
    """Lower bound of the log evidence under the posterior of the items, user by user."""
    mean, covariance = items.mean.numpy(), items.covariance.numpy()
    second = covariance + mean[:, :, None] * mean[:, None, :]
    total = 0.0
    for u in np.unique(user):
        own, y = item[user == u], value[user == u]
        square = second[own][:, :-1, :-1].sum(0) / items.noise
        mixed = (y[:, None] * mean[own, :-1] - second[own][:, :-1, -1]).sum(0) / items.noise
        rest = (y**2 - 2 * y * mean[own, -1] + second[own][:, -1, -1]).sum() / items.noise
        precision = np.eye(len(square)) + square
        total += 0.5 * (mixed @ np.linalg.solve(precision, mixed) - rest)
        total -= 0.5 * np.linalg.slogdet(precision)[1]
        total -= 0.5 * len(y) * np.log(2 * np.pi * items.noise)
    normal = torch.distributions.MultivariateNormal
    found = normal(items.mean, items.covariance)
    expected = normal(prior.mean, precision_matrix=prior.precision.diag())
    return total - torch.distributions.kl_divergence(found, expected).sum().item()


def test_every_round_raises_the_bound_of_the_evidence():
    log = planted(1, num_users=60, num_items=12)
    user, item = torch.from_numpy(log.user_of_event()), torch.from_numpy(log.item).long()
    value = torch.from_numpy(log.action_value[log.action].astype(np.float64))
    value = (value - value.mean()) / value.std(correction=0)
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(log.meta.num_items, 2, generator=generator, dtype=torch.float64)
    items, prior = item_factors._Items.start(0.3 * factor), item_factors._Prior.start(2)
    expected = torch.zeros(60, 2, dtype=torch.float64)
    bounds = []
    for _ in range(8):
        items, _ = item_factors._round(user, item, value, items, expected, prior)
        bounds.append(evidence(user.numpy(), item.numpy(), value.numpy(), items, prior))
    assert bounds == sorted(bounds)


def test_the_fitted_prior_is_the_likeliest():
    """Observations of known noise, of which the posteriors are exact."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.05, 2.0, (400, 2))
    seen = np.array([0.3, -1.0]) + rng.normal(0, [0.4, 1.5], (400, 2)) + rng.normal(0, noise**0.5)
    prior = item_factors._Prior.start(1)
    for _ in range(100):
        variance = 1 / (1 / torch.from_numpy(noise) + prior.precision)
        mean = variance * (torch.from_numpy(seen / noise) + prior.precision * prior.mean)
        prior = prior.fitted(mean, torch.diag_embed(variance))
    for n in range(2):

        def surprise(x, n=n):
            return -norm.logpdf(seen[:, n], x[0], np.sqrt(np.exp(-x[1]) + noise[:, n])).sum()

        best = minimize(surprise, [0.0, 0.0], tol=1e-9).x
        assert prior.mean[n].item() == pytest.approx(best[0], abs=1e-3)
        assert prior.precision[n].item() == pytest.approx(np.exp(best[1]), rel=1e-2)


def test_a_log_without_kinds_of_taste_keeps_one_factor():
    """Users differ in how much they like anything, items in how much anybody likes them."""
    rng = np.random.default_rng(0)
    level, quality = rng.normal(0, 0.7, 500), rng.normal(0, 0.7, 20)
    items = np.stack([rng.permutation(20)[:12] for _ in range(500)])
    value = level[:, None] + quality[items] + rng.normal(0, 1.0, items.shape)
    users = [[(int(i) + FIRST_ITEM, 10**9 + n, 1) for n, i in enumerate(row)] for row in items]
    log = make_log(users, num_items=20 + FIRST_ITEM)
    valued = {
        "action": np.clip(np.round(value * 1.5) + 3, 1, 5).astype(np.int16).ravel(),
        "action_value": np.array([np.nan, 1, 2, 3, 4, 5], dtype=np.float32),
    }
    factor = fit_item_factors(EventLog(**log.__dict__ | valued), 4, seed=0).factor[FIRST_ITEM:]
    assert (factor[:, 1:].std(0) < 0.01).all()
    assert (fit_item_factors(planted(1), 4, seed=0).factor[FIRST_ITEM:].std(0) > 0.1).sum() >= 2


def test_a_warm_fit_stays_near_the_factors_that_it_started_from():
    log = planted(2)
    before = fit_item_factors(log, 2, seed=0).factor
    warm = fit_item_factors(log, 2, seed=5, start=before).factor
    fresh = fit_item_factors(log, 2, seed=5).factor
    assert (warm - before).abs().mean() < 0.2 * (fresh - before).abs().mean()


def test_hints_tell_the_taste_of_a_user_by_the_items_alone():
    """Users of either kind meet a third of the items only, whose values say nothing."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 300)
    users, actions = [], []
    for u in range(300):
        own = rng.choice(10, 5, replace=False) + 10 * kind[u]
        common = rng.choice(10, 5, replace=False) + 20
        likes = np.where(kind[u], 5, 1) * np.ones(5, int)
        items = np.concatenate([own, common])
        actions.append(
            np.concatenate([rng.integers(1, 6, 5), np.where(common % 2, likes, 6 - likes)])
        )
        users.append([(int(i) + FIRST_ITEM, 10**9 + n, 1) for n, i in enumerate(items)])
    log = make_log(users, num_items=30 + FIRST_ITEM)
    valued = {
        "action": np.concatenate(actions).astype(np.int16),
        "action_value": np.array([np.nan, 1, 2, 3, 4, 5], dtype=np.float32),
    }
    found = fit_item_factors(EventLog(**log.__dict__ | valued), 2, seed=0)
    factor, hint = found.factor.numpy()[FIRST_ITEM:], found.hint.numpy()[FIRST_ITEM:]
    for own, sign in ((slice(0, 10), -1), (slice(10, 20), 1)):
        expected = factor[20:] @ hint[own].mean(0) * np.sqrt(5)
        assert (np.sign(expected) == sign * np.where(np.arange(20, 30) % 2, 1, -1)).all()


def test_a_log_without_values_has_biases_and_factors_that_say_nothing():
    log = random_log(0)
    blank = EventLog(**{**log.__dict__, "action_value": np.full(3, np.nan, dtype=np.float32)})
    found = fit_item_factors(blank, 2, seed=0)
    assert not found.bias.any() and not found.hint.any() and not found.valued.any()


def test_what_was_fitted_learns_at_a_rate_of_its_own(small_log):
    cfg = parameters(finetune__factor_scale=0.25, finetune__inherited_scale=0.5)
    model = build(cfg.model, Catalogue.of(small_log), ranking=True)
    optimizer = _optimizer(model, cfg)
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    readout, full = model.click.readout, cfg.finetune.learning_rate
    assert rate[id(readout.factor)] == rate[id(readout.hint)] == 0.25 * full
    assert rate[id(model.trunk.items.item.weight)] == 0.5 * full
    assert rate[id(model.click.item_bias)] == 0.25 * full
    assert rate[id(readout.slope)] == full
    assert rate.keys() == {id(p) for p in model.parameters() if p.requires_grad}


def test_items_of_one_category_are_nearer_than_their_factors(batch, placed):
    torch.manual_seed(0)
    readout = PreferenceReadout(32, 3, DIM, num_anchors=4, num_categories=8)
    packed, category = pack(batch.histories, CPU), torch.arange(32) % 8
    anchor, _ = readout.select(packed, placed, readout.space(readout.category[category]))
    factors = torch.nn.functional.normalize(readout.factor.detach(), dim=1)
    for c in range(len(placed.item)):
        seen = packed.item[int(placed.first[c]) : int(placed.end[c])]
        near = factors[seen] @ factors[placed.item[c]]
        kinds = torch.nn.functional.normalize(readout.category.detach(), dim=1)[category]
        near += 0.25 * kinds[seen] @ kinds[placed.item[c]]
        kept = anchor[c][anchor[c] >= 0] - int(placed.first[c])
        best = near.sort(descending=True).values[: len(kept)]
        torch.testing.assert_close(near[kept], best)
