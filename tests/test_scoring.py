"""The scorer: the same answer alone as in a batch, from disk as from memory, without a past."""

import json
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_leaks import catalogue, random_histories, settings, trained_looking

import hpgr.model.scoring
from hpgr.data.histories import Histories
from hpgr.model.interface import build
from hpgr.model.placement import found_device
from hpgr.model.repeat_counts import Repeats
from hpgr.model.scoring import Scorer
from hpgr.model.zoo import section_of
from hpgr.runtime import DamagedFile, UserError

CPU = torch.device("cpu")


def one(histories, query):
    part = slice(histories.offsets[query], histories.offsets[query + 1])
    return Histories(
        np.array([0, part.stop - part.start]),
        histories.item[part],
        histories.action[part],
        histories.timestamp[part],
        histories.session[part],
        histories.request_time[query : query + 1],
    )


@pytest.fixture(params=["hpgr", "hstu", "mtgr"])
def scorer(request, monkeypatch):
    monkeypatch.setattr(hpgr.model.scoring, "TOKENS_AT_A_TIME", 25)
    model = build(settings(name=request.param), catalogue(), ranking=True)
    return Scorer(trained_looking(model), CPU, 40)


def test_a_query_alone_scores_as_in_a_batch(scorer):
    histories = random_histories([12, 1, 20, 5], seed=1)
    offsets, items = np.array([0, 2, 2, 5, 6]), np.array([3, 4, 5, 6, 7, 8])
    together = scorer.retrieve(histories)
    ranked = scorer.rank(histories, offsets, items)
    for query in range(4):
        alone = one(histories, query)
        np.testing.assert_allclose(scorer.retrieve(alone)[0], together[query], atol=1e-5)
        part = slice(offsets[query], offsets[query + 1])
        got = scorer.rank(alone, np.array([0, part.stop - part.start]), items[part])
        np.testing.assert_allclose(got, ranked[part], atol=1e-5)


def test_reserved_items_are_never_retrieved(scorer):
    scores = scorer.retrieve(random_histories([5], seed=2))
    assert np.isneginf(scores[:, :2]).all() and np.isfinite(scores[:, 2:]).all()


def test_empty_histories_are_ranked_and_retrieve_nothing_in_particular(scorer):
    full = random_histories([6, 4], seed=3)
    mixed = Histories(
        np.array([0, 0, 6, 6, 10]), full.item, full.action, full.timestamp, full.session,
        np.array([10**9, full.request_time[0], 10**9, full.request_time[1]]),
    )  # fmt: skip
    scores = scorer.retrieve(mixed)
    np.testing.assert_allclose(scores[[1, 3]], scorer.retrieve(full), atol=1e-5)
    assert (scores[[0, 2], 2:] == 0).all()
    probability = scorer.rank(mixed, np.arange(5), np.array([2, 3, 4, 5]))
    assert ((probability > 0) & (probability < 1)).all()
    alone = scorer.rank(full, np.arange(3), np.array([3, 5]))
    np.testing.assert_allclose(probability[[1, 3]], alone, atol=1e-5)
    only_empty = Histories(
        np.array([0, 0]), *(np.zeros(0, dtype=np.int64) for _ in range(4)), np.array([10**9])
    )
    assert scorer.rank(only_empty, np.array([0, 1]), np.array([2])) == pytest.approx(
        probability[0], rel=1e-5
    )


def test_anchors_are_positions_of_the_own_history():
    model = build(settings(num_anchors=3), catalogue(), ranking=True)
    scorer = Scorer(trained_looking(model), CPU, 40)
    histories = random_histories([12, 2, 20], seed=4)
    position, weight = scorer.explain(histories)
    assert position.shape == weight.shape == (3, 3)
    for query, length in enumerate([12, 2, 20]):
        picked = position[query][position[query] >= 0]
        assert len(picked) == min(3, length) and (picked < length).all()
        assert len(set(picked)) == len(picked)
    assert (weight[position < 0] == 0).all()


@pytest.mark.parametrize("history_rows", ["causal", "preference"])
def test_anchors_of_candidates_are_those_that_ranking_read_through(history_rows, monkeypatch):
    """The masks that `rank` computes on its way are caught where the signals give them."""
    monkeypatch.setattr(hpgr.model.scoring, "TOKENS_AT_A_TIME", 25)
    model = build(settings(history_rows=history_rows), catalogue(), ranking=True)
    scorer = Scorer(trained_looking(model), CPU, 40)
    histories = random_histories([12, 1, 20, 5], seed=7)
    offsets, items = np.array([0, 3, 5, 9, 10]), np.arange(10) + 2
    position, weight = scorer.explain(histories, offsets, items)
    assert position.shape == weight.shape == (10, 3)
    caught = []
    model.candidate_signals.register_forward_hook(lambda _, inputs, mask: caught.append(mask))
    for query, (low, high) in enumerate(pairwise(offsets)):
        for candidate in range(low, high):
            scorer.rank(one(histories, query), np.array([0, 1]), items[candidate : candidate + 1])
            mask = caught[-1]
            assert position[candidate].tolist() == mask.anchor[0].tolist()
            np.testing.assert_allclose(weight[candidate], mask.peak[0], atol=1e-5)


@pytest.mark.parametrize("readout", [True, False])
def test_anchors_of_candidates_are_the_most_similar_items_by_brute_force(readout):
    """Items are compared with items, in the space of the read-out or else of the item table."""
    model = trained_looking(build(settings(readout=readout), catalogue(), ranking=True))
    histories, items = random_histories([12, 20], seed=8), np.array([7, 8, 9])
    scorer, offsets = Scorer(model, CPU, 40), np.array([0, 1, 3])
    position, weight = scorer.explain(histories, offsets, items)
    same, similar = scorer.anchors(histories, offsets, items)
    np.testing.assert_array_equal(same, position)
    table = model.trunk.items.table()[:-1].detach()
    unit = table / table.norm(dim=1, keepdim=True)
    space, selector = unit - model.shared.detach(), model.item_selector
    space = space / space.norm(dim=1, keepdim=True)
    if readout:  # factors beside the one category of each item, of half their length
        readout = model.click.readout
        parts = (readout.factor.detach(), readout.category.detach()[catalogue().category])
        unit, kinds = (part / part.norm(dim=1, keepdim=True) for part in parts)
        space, selector = torch.cat([unit, kinds / 2], 1), readout.selector
    asking, past = (space @ part.weight.detach().T for part in (selector.query, selector.key))
    for candidate, query in enumerate([0, 1, 1]):
        seen = one(histories, query).item
        cosine = torch.cosine_similarity(asking[items[candidate]], past[seen], dim=1)
        best = cosine.topk(3).indices
        found = torch.from_numpy(position[candidate])
        torch.testing.assert_close(cosine[found], cosine[best])  # a repeated item ties
        sharpness = model.candidate_signals.log_sharpness.exp()
        expected = torch.exp(sharpness * (cosine[best] - cosine.max())).detach()
        np.testing.assert_allclose(weight[candidate], expected, atol=1e-5)
        np.testing.assert_allclose(similar[candidate], cosine[best].detach(), atol=1e-5)


def test_random_anchors_are_the_same_each_time_and_leave_the_random_state_alone():
    scorer = Scorer(trained_looking(build(settings(), catalogue(), ranking=True)), CPU, 40)
    histories = random_histories([30, 20], seed=9)
    asked = histories, np.array([0, 2, 3]), np.array([4, 5, 6])
    chosen, before = scorer.anchors(*asked)[0], torch.random.get_rng_state()
    drawn = []
    for _ in range(2):
        with scorer.intervened("random"):
            drawn.append(scorer.anchors(*asked)[0])
    np.testing.assert_array_equal(*drawn)
    assert (drawn[0] != chosen).any() and (drawn[0] >= 0).all()
    assert (drawn[0] < np.array([[30], [30], [20]])).all()
    with scorer.intervened("none"):
        assert (scorer.anchors(*asked)[0] == -1).all()
    np.testing.assert_array_equal(scorer.anchors(*asked)[0], chosen)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("asked", [(), (np.array([0, 2]), np.array([4, 5]))])
@pytest.mark.parametrize(("name", "preference"), [("hstu", True), ("hpgr", False)])
def test_a_network_without_signals_explains_nothing(name, preference, asked):
    model = build(settings(name=name, preference=preference), catalogue(), ranking=True)
    position, weight = Scorer(model, CPU, 40).explain(random_histories([3], seed=5), *asked)
    assert position.shape == weight.shape == (2 if asked else 1, 0)


@pytest.mark.parametrize("name", ["hpgr", "hstu", "mtgr"])
def test_loading_brings_back_the_same_scores(tmp_path, name):
    sizes = catalogue()
    model = trained_looking(build(settings(name=name), sizes, ranking=True))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {
        "ranking": True,
        "model": asdict(section_of(settings(name=name))),
        "catalogue": {
            k: getattr(sizes, k) for k in ("num_items", "num_actions", "num_categories", "gap_s")
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    histories = random_histories([8, 3], seed=6)
    loaded = Scorer.load(tmp_path)  # before pCTR was calibrated: nothing says how
    expected = Scorer(model, CPU, 40)
    np.testing.assert_array_equal(loaded.retrieve(histories), expected.retrieve(histories))
    np.testing.assert_array_equal(
        loaded.rank(histories, np.array([0, 1, 2]), np.array([5, 6])),
        expected.rank(histories, np.array([0, 1, 2]), np.array([5, 6])),
    )


def test_pctr_is_calibrated_and_repeats_count_as_the_config_says(tmp_path):
    sizes, asked = catalogue(), (np.array([0, 2, 3]), np.array([5, 6, 5]))
    model = trained_looking(build(settings(name="hpgr"), sizes, ranking=True))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    numbers = ("num_items", "num_actions", "num_categories", "gap_s")
    config = {
        "ranking": True,
        "calibration": {"slope": 0.5, "shift": -0.25},
        "model": asdict(section_of(settings(name="hpgr"))),
        "catalogue": {k: getattr(sizes, k) for k in numbers},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded, histories = Scorer.load(tmp_path), random_histories([8, 3], seed=6)
    plain = Scorer(model, CPU, 40).rank(histories, *asked)
    expected = 1 / (1 + np.exp(-(0.5 * np.log(plain / (1 - plain)) - 0.25)))
    np.testing.assert_allclose(loaded.rank(histories, *asked), expected, atol=1e-6)
    np.testing.assert_allclose(loaded.read(histories).rank(*asked)[0], expected, atol=1e-6)
    config["calibration"] = {"slope": "steep", "shift": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamagedFile, match=r"calibration\.slope"):
        Scorer.load(tmp_path)
    del config["calibration"]
    assert loaded.additions.idle  # of a network that knew none
    repeats = {"weight": 0.2, "decay": 0.5, "weight_after_pause": 0.3, "decay_after_pause": 1.0}
    config["repeats"] = repeats
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Scorer.load(tmp_path).additions.repeats == Repeats(0.2, 0.5, 0.3, 1.0, sizes.gap_s)
    config["repeats"]["decay"] = 1.5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamagedFile, match=r"repeats\.decay"):
        Scorer.load(tmp_path)


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert found_device("auto") == "cpu"
    with pytest.raises(UserError, match=r"device is cuda .* set it to auto or cpu"):
        found_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [found_device(name) for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
