"""Cross features against loops over the events that each candidate sees."""

from dataclasses import replace
from itertools import pairwise
from math import log

import numpy as np
import pytest
import torch
from test_leaks import random_histories
from test_warm import catalogue

from hpgr.data.batches import events_before
from hpgr.model.cross_features import PACES, PRIOR_EVENTS, CrossFeatures
from hpgr.model.embedding import ItemEmbedding
from hpgr.model.packed import pack, place_candidates
from hpgr.model.tastes import CLOCKS, ItemFactors

CPU = torch.device("cpu")
NUM_ITEMS = 12  # items come again


def made(form, *, categories=True):
    """Features with random values, and items with none, one or two categories."""
    sizes = catalogue(NUM_ITEMS, 6, 3)
    if not categories:
        none = torch.zeros(0, dtype=torch.int64)
        sizes = replace(
            sizes, category=none, category_offsets=torch.zeros_like(sizes.category_offsets)
        )
    cross, random = CrossFeatures(NUM_ITEMS, 6, form, 3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        cross.value.normal_(generator=random)
        cross.bias.normal_(generator=random)
        cross.valued.fill_(1.0)[2] = 0.0
        if cross.tastes is not None:
            bias, value, valued = cross.bias, cross.value, cross.valued
            hint = torch.randn(NUM_ITEMS, 3, generator=random)
            factor = torch.randn(NUM_ITEMS, 3, generator=random)
            cross.start_from(ItemFactors(factor, bias, hint, value, valued, noise=0.7))
    return cross, ItemEmbedding(sizes, 4, side_features=True)


def asked(lengths, seed=1):
    """Histories of few items and candidates at the times of some events, in no order of time."""
    histories = random_histories(lengths, seed)
    random = np.random.default_rng(seed)
    histories = replace(histories, item=random.integers(1, NUM_ITEMS, len(histories.item)))
    user = np.repeat(np.arange(len(lengths)), 6)
    own = [histories.timestamp[a:b] for a, b in pairwise(histories.offsets)]
    time = np.concatenate(
        [random.choice([*t, histories.request_time[u]], 6) for u, t in enumerate(own)]
    )
    seen = events_before(histories, user, time)
    offsets = np.arange(len(lengths) + 1) * 6
    item = random.integers(1, NUM_ITEMS, len(user))
    return histories, place_candidates(histories, offsets, item, seen, time, CPU)


def mean(weights, values):
    """Weighted mean of (valued, value) shrunk towards 0."""
    total = sum(w * v for w, (valued, v) in zip(weights, values, strict=True) if valued)
    count = sum(w for w, (valued, _) in zip(weights, values, strict=True) if valued)
    return total / (count + PRIOR_EVENTS)


def by_loops(cross, items, histories, candidates, c):
    """Features of candidate c."""
    rows = range(int(candidates.first[c]), int(candidates.end[c]))
    item, bounds = int(candidates.item[c]), items.category_offsets.tolist()
    kinds_of = [items.category[a:b].tolist() for a, b in pairwise(bounds)]
    value, bias = cross.value.tolist(), cross.bias.tolist()
    same = [r for r in rows if histories.item[r] == item and item > 1]
    by_category = [[r for r in rows if g in kinds_of[histories.item[r]]] for g in kinds_of[item]]
    features = []
    for groups in ([list(rows)], [same], by_category):
        events = [r for group in groups for r in group]
        ages = [age for group in groups for age in reversed(range(len(group)))]
        valued = [bool(cross.valued[histories.action[r]]) for r in events]
        actions = [value[histories.action[r]] for r in events]
        values = list(zip(valued, actions, strict=True))
        left = [
            (known, a - bias[histories.item[r]])
            for known, a, r in zip(valued, actions, events, strict=True)
        ]
        features += [log(1 + len(events)), mean([1] * len(events), values)]
        if cross.residual:
            for pace in (1.0, *PACES):
                features.append(mean([pace**age for age in ages], left))
            since = int(candidates.time[c]) - max(histories.timestamp[events]) if events else 0
            features.append(log(1 + since))
    if cross.tastes is not None:
        features += by_solving(cross.tastes, histories, rows, item)
    return features


def by_solving(tastes, histories, rows, item):
    """Predictions of the posterior of the taste, from its normal equations."""
    factor, hint = tastes.factor.numpy(), tastes.hint.numpy()
    valued = [r for r in rows if tastes.valued[histories.action[r]]]
    f = factor[histories.item[valued]]
    left = (tastes.value[histories.action[valued]] - tastes.bias[histories.item[valued]]).numpy()
    prior = hint[histories.item[valued]].sum(0) / max(1, len(valued)) ** 0.5
    features = []
    for clock in CLOCKS:
        weight = np.array([clock ** (rows[-1] - r) for r in valued])
        precision = np.eye(3) + (f.T * weight) @ f / 0.7
        taste = np.linalg.solve(precision, (f.T * weight) @ left / 0.7 + prior)
        predicted, variance = (
            factor[item] @ taste,
            factor[item] @ np.linalg.solve(precision, factor[item]),
        )
        features += [predicted, variance, predicted / (variance + 0.7) ** 0.5]
        features.append((weight * left).sum() / (weight.sum() + 5))
    return features


@pytest.mark.parametrize("categories", [True, False])
@pytest.mark.parametrize("form", ["published", "residual", "fold_in"])
def test_features_equal_loops(form, categories):
    cross, items = made(form, categories=categories)
    histories, candidates = asked([40, 1, 17, 90])
    found = cross(pack(histories, CPU), candidates, items)
    assert found.shape == (24, cross.num_features)
    expected = [by_loops(cross, items, histories, candidates, c) for c in range(24)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_without_a_past_all_is_0():
    cross, items = made("residual")
    histories = replace(
        random_histories([3], 0),
        offsets=np.array([0, 0]),
        **{name: np.zeros(0, int) for name in ("item", "action", "timestamp", "session")},
    )
    placed = place_candidates(
        histories, np.array([0, 2]), np.array([5, 7]), np.array([0, 0]), np.array([9, 9]), CPU
    )
    assert (cross(pack(histories, CPU), placed, items) == 0).all()
