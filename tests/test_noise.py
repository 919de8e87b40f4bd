"""Noise in histories: what is inserted, what a network loses by it, where its attention falls."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_log import random_log
from test_evaluate import CONFIG, Knowing
from test_leaks import CPU, SPARSE, settings

from benchmarks.attention_mass import masses, watched
from benchmarks.noise import CLEAN, METRICS, judged, of_noise, over_dense
from benchmarks.noisy_log import unmet_items, with_noise
from hpgr.data.log import DTYPES, TEST
from hpgr.evaluation import protocols
from hpgr.model.catalogue import Catalogue
from hpgr.model.interface import build
from hpgr.model.packed import pack, place_candidates
from hpgr.model.scoring import Scorer
from hpgr.runtime import UserError

LOG = random_log(0, num_items=60, split="global-time")
ROOT = Path(__file__).parents[1]
ROW_MODELS = {"HSTU, trained as HPGR": "hstu-plain", "HPGR, mean of 3 seeds": "hpgr"}
USERS = np.arange(0, LOG.meta.num_users, 2)
QUERIES, CANDIDATES = protocols.next_item(LOG, TEST), protocols.labelled(LOG, TEST)
NOISY = with_noise(LOG, np.arange(LOG.meta.num_users), 0.4)


def test_without_noise_the_log_stays_as_it_is():
    clean = with_noise(LOG, USERS, 0.0)
    for name in DTYPES:
        np.testing.assert_array_equal(getattr(clean.log, name), getattr(LOG, name), err_msg=name)


def test_what_is_inserted_lies_between_events_of_the_users_asked_and_is_new_to_them():
    noisy = with_noise(LOG, USERS, 0.4)
    log, inserted = noisy.log, noisy.inserted
    for name in ("item", "action", "timestamp"):
        np.testing.assert_array_equal(getattr(log, name)[noisy.row], getattr(LOG, name))
    for user, (start, end) in enumerate(pairwise(log.user_offsets)):
        mine = inserted[start:end]
        real = LOG.item[LOG.user_offsets[user] : LOG.user_offsets[user + 1]]
        np.testing.assert_array_equal(log.item[start:end][~mine], real)
        assert not mine.any() or (user in USERS and not mine[0] and not mine[-1])
        assert not set(log.item[start:end][mine]) & set(real)
        gap = np.diff(log.timestamp[start:end])
        assert (gap >= 0).all()
        np.testing.assert_array_equal(
            log.session[start:end], np.concatenate([[0], np.cumsum(gap > LOG.meta.gap_s)])
        )
    assert set(log.action[inserted]) == set(LOG.action)


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_of_what_follows_a_first_event_the_share_is_inserted(share):
    log = random_log(1, num_users=400, num_items=60)
    inserted = with_noise(log, np.arange(400), share).inserted
    assert inserted.sum() / (len(inserted) - 400) == pytest.approx(share, rel=0.08)


def test_a_user_who_has_met_everything_gets_no_noise():
    full = replace(LOG, item=np.resize(np.arange(2, 62, dtype=np.int32), LOG.meta.num_events))
    with pytest.raises(UserError, match="met every item"):
        unmet_items(full, np.zeros(LOG.meta.num_events, int), np.zeros(1, int), np.random)


@pytest.mark.parametrize("queries", [QUERIES, CANDIDATES], ids=["next item", "candidates"])
def test_a_query_sees_the_same_real_events_the_newest_last(queries):
    asked = NOISY.asked(queries)
    for query, user in enumerate(queries.user):
        before = np.arange(LOG.user_offsets[user], queries.end[query])
        rows = np.arange(NOISY.log.user_offsets[user], asked.end[query])
        np.testing.assert_array_equal(rows[~NOISY.inserted[rows]], NOISY.row[before])
        assert not len(rows) or not NOISY.inserted[rows[-1]]
        assert (NOISY.log.timestamp[rows] <= queries.request_time[query]).all()


def falls(network):
    noises = {CLEAN: with_noise(LOG, USERS, 0.0), "40%": NOISY}
    tables = judged(network, LOG, noises, QUERIES, CANDIDATES, CONFIG.evaluate, max_history=200)
    return of_noise(tables, "40%")["falls"]


def test_a_network_that_ignores_the_history_loses_nothing():
    found = falls(Knowing(LOG))
    assert found.keys() == {"ndcg@10", "hr@10", "auc", "gauc"}
    assert {fall[bound] for fall in found.values() for bound in ("value", "low", "high")} == {0}


class Confused(Knowing):
    """Knows all while every event of a history is one of the real log, and nothing else."""

    def confused(self, histories):
        real = set(zip(LOG.item.tolist(), LOG.timestamp.tolist(), strict=True))
        bounds = pairwise(histories.offsets)
        events = list(zip(histories.item.tolist(), histories.timestamp.tolist(), strict=True))
        return np.array([not real.issuperset(events[low:high]) for low, high in bounds])

    def retrieve(self, histories):
        scores = super().retrieve(histories)
        return np.where(self.confused(histories)[:, None] & np.isfinite(scores), 0, scores)

    def rank(self, histories, offsets, candidates):
        confused = np.repeat(self.confused(histories), np.diff(offsets))
        return np.where(confused, 0.5, super().rank(histories, offsets, candidates))


def test_a_network_that_noise_confuses_loses_what_it_knew():
    seeing = sees_noise(QUERIES)
    repeats = [
        item in LOG.item[LOG.user_offsets[user] : end]
        for item, user, end in zip(QUERIES.target, QUERIES.user, QUERIES.end, strict=True)
    ]
    found = falls(Confused(LOG))
    lost = np.mean(seeing & ~np.array(repeats))  # of the others it finds every one
    assert found["hr@10"]["value"] == pytest.approx(lost)
    assert found["hr@10"]["relative"] == pytest.approx(lost / np.mean(~np.array(repeats)))
    assert found["auc"]["low"] > 0


def sees_noise(queries):
    asked = NOISY.asked(queries)
    start = NOISY.log.user_offsets[asked.user]
    bounds = zip(start, asked.end, strict=True)
    return np.array([NOISY.inserted[low:high].any() for low, high in bounds])


def planted(name, position_bias, **changes):
    """A network whose scores are `position_bias` [P] by distance, 0 beyond."""
    torch.manual_seed(0)
    model = build(settings(name=name, **changes), Catalogue.of(LOG), ranking=True).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.uvqk.zero_()
            block.time_bias.zero_()
            block.position_bias.zero_()
            block.position_bias[: len(position_bias)] = position_bias
    return Scorer(model, CPU, model.blocks[0].position_bias.numel())


def histories_seen(candidates):
    """Query and item of every candidate that sees noise, and which events it sees are inserted."""
    asked, seeing = NOISY.asked(candidates), sees_noise(candidates)
    for query in np.flatnonzero(seeing):
        seen = NOISY.inserted[NOISY.log.user_offsets[asked.user[query]] : asked.end[query]]
        for row in range(asked.offsets[query], asked.offsets[query + 1]):
            yield query, asked.item[row], seen


def test_even_weights_give_inserted_events_their_share():
    scorer = planted("hstu", torch.ones(51))
    found = masses(scorer, NOISY, CANDIDATES, 200)
    expected = np.mean([seen.mean() for *_, seen in histories_seen(CANDIDATES)])
    assert found["share"] == pytest.approx(expected)
    assert found["candidates"] == found["states"] == pytest.approx(expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_network_that_looks_two_events_back_puts_its_attention_there(sign):
    """SiLU is not 0 there whatever the sign, and 0 at a score of 0."""
    scorer = planted("hstu", torch.tensor([0.0, 0.0, sign]))
    found = masses(scorer, NOISY, CANDIDATES, 200)
    back = [[seen[-2], seen[-3]] for *_, seen in histories_seen(CANDIDATES)]
    # A candidate stands behind the newest event, a state is that event's own.
    assert [found["candidates"], found["states"]] == pytest.approx(np.mean(back, axis=0).tolist())


@pytest.mark.parametrize("max_history", [40, SPARSE], ids=["dense", "sparse"])
def test_attention_through_a_mask_falls_where_the_bells_are(max_history):
    scorer = planted("hpgr", torch.ones(max_history + 1), max_history=max_history)
    found = masses(scorer, NOISY, CANDIDATES, 200)
    query, item, every = zip(*histories_seen(CANDIDATES), strict=True)
    alone = NOISY.asked(CANDIDATES).take(np.array(query)).histories(NOISY.log, 200)
    positions, peaks = scorer.explain(alone, np.arange(len(item) + 1), np.array(item))
    mass, anchors = [], []
    for seen, position, peak in zip(every, positions, peaks, strict=True):
        peak, position = peak[position >= 0], position[position >= 0]
        away = np.abs(np.arange(len(seen))[:, None] - position)
        bell = np.where(away <= 3, peak * np.exp(-(away**2) / 2), 0).max(1)  # sigma 1
        bell[-4:] = 1  # the newest events that a candidate always sees
        mass.append(bell[seen].sum() / bell.sum())
        anchors.append(seen[position].mean())
    assert found["candidates"] == pytest.approx(np.mean(mass), rel=1e-5)
    assert found["anchors"] == pytest.approx(np.mean(anchors))


@pytest.mark.parametrize("name", ["hstu", "hpgr"])
def test_a_network_answers_the_same_while_it_is_watched(name):
    torch.manual_seed(0)
    model = build(settings(name=name), Catalogue.of(LOG), ranking=True).eval()
    histories = CANDIDATES.histories(LOG, 40).without_empty()
    packed = pack(histories, CPU)
    one = np.arange(len(histories) + 1), np.full(len(histories), 2)
    placed = place_candidates(histories, *one, histories.length, histories.request_time, CPU)
    with torch.inference_mode():
        reading = model.read(packed)
        expected = model.judge(packed, reading, placed).logits
        with watched(model.blocks, packed) as seen:
            torch.testing.assert_close(
                model.judge(packed, reading, placed).logits, expected, rtol=0, atol=0
            )
        model.judge(packed, reading, placed)
    assert len(seen) == len(model.blocks)  # not watched any more


def test_ratios_are_left_out_where_the_dense_network_does_not_fall_beyond_chance():
    def measured(mass, ndcg, auc):
        falls = {
            "ndcg@10": {"value": 0.1, "low": 0.05, "relative": ndcg},
            "auc": {"value": auc, "low": auc - 0.02},
        }
        return {"mass": {"candidates": mass, "states": mass}, "falls": falls}

    found = over_dense(measured(0.1, 0.02, 0.03), measured(0.4, 0.04, 0.01))
    assert found == {
        "mass, candidates": 0.25,
        "mass, states": 0.25,
        "fall, ndcg@10": 0.5,
        "fall, auc": None,
    }


def test_the_documented_figures_are_those_committed():
    figures = json.loads((ROOT / "benchmarks/results/noise.json").read_text())["figures"]
    page = (ROOT / "docs/evaluation.md").read_text().partition("## Noise in histories")[2]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if " % | H" in line]
    assert len(rows) == 6
    for share, model, *cells in rows:
        names = [n for n in figures["models"] if n.partition("/")[0] == ROW_MODELS[model]]
        found = [figures["models"][name][share.replace(" ", "")] for name in names]
        expected = [
            *(np.mean([one["falls"][m]["value"] for one in found]) for m in METRICS),
            *(
                np.mean([one["mass"][m] for one in found])
                for m in ("share", "candidates", "states")
            ),
        ]
        shown = [float(cell.replace("−", "-")) for cell in cells[:7]]
        assert shown == pytest.approx(expected, abs=5.1e-5), (share, model)
    for name in ("queries", "candidates", "users_with_candidates", "candidates_looked_at"):
        assert f"{figures[name]:,} " in page.replace("\n", " "), name
