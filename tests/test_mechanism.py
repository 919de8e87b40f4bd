"""Effects of anchors, measured on networks whose anchors are worth a known amount."""

import html
import json
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from evaluation_log import random_log
from test_evaluate import CONFIG, Knowing, prepare

from benchmarks import mechanism as benchmark
from hpgr.data.histories import Histories
from hpgr.data.log import TEST
from hpgr.evaluation import evaluate, mechanism
from hpgr.evaluation.model_protocols import Anchored
from hpgr.model.attention.select import Selector
from hpgr.model.scoring import Scorer
from hpgr.workspace import HERE, Workspace

SETTINGS = CONFIG.evaluate
LENGTH = 40


class Planted(Knowing):
    """Knows the next item and what is liked; with `cares`, only through its anchors.

    Those of an even item are the two oldest events, of an odd one the next two.
    """

    def __init__(self, log, *, cares):
        super().__init__(log)
        self.cares, self.mode = cares, "chosen"

    @property
    def blind(self):
        return self.cares and self.mode != "chosen"

    @contextmanager
    def intervened(self, mode):
        self.mode = mode
        yield
        self.mode = "chosen"

    def retrieve(self, histories):
        scores = super().retrieve(histories)
        return np.where(np.isfinite(scores), -scores, scores) if self.blind else scores

    def rank(self, histories, offsets, candidates):
        liked = super().rank(histories, offsets, candidates)
        return np.full_like(liked, 0.5) if self.blind else liked

    def explain(self, histories, offsets=None, candidates=None):
        if candidates is None:
            candidates = np.zeros(len(histories), dtype=np.int64)
        first = np.where(candidates % 2, 2, 0)
        return np.stack([first, first + 1], axis=1), np.ones((len(first), 2), dtype=np.float32)

    def anchors(self, histories, offsets, candidates):
        position, weight = self.explain(histories, offsets, candidates)
        return position, weight * (0.9 if self.mode == "chosen" else 0.2)


class Counting(Planted):
    """Likes an item the more, the longer the history is, whichever events these are."""

    def rank(self, histories, offsets, candidates):
        length = np.repeat(np.diff(histories.offsets), np.diff(offsets))
        return super().rank(histories, offsets, candidates) * length / (length + 1)


def found(*, cares, split="leave-one-out", log=None, **changes):
    log = log or random_log(0, split=split)
    return mechanism.measure(
        log, Planted(log, cares=cares), SETTINGS.model_copy(update=changes), split=TEST,
        max_history=200, ranks=True,
    )  # fmt: skip


def some_histories(users):
    return Histories(
        offsets=np.arange(users + 1) * LENGTH,
        item=np.tile(np.arange(LENGTH), users),
        action=np.ones(users * LENGTH, dtype=np.int16),
        timestamp=np.tile(np.arange(LENGTH), users),
        session=np.zeros(users * LENGTH, dtype=np.int32),
        request_time=np.full(users, LENGTH),
    )


@pytest.mark.parametrize("split", ["leave-one-out", "global-time"])
def test_a_network_that_needs_its_anchors_loses_what_they_gave_it(split):
    log = random_log(0, split=split)
    measured = found(cares=True, log=log)
    chosen, random = measured.values["chosen"], measured.values["random"]
    assert chosen["ndcg@3"] > 0.7 > 0.2 > random["ndcg@3"]  # first, then last; repeats are misses
    assert chosen["auc"] > 0.7 and random["auc"] == 0.5
    for metric, drop in measured.drops["random"].items():
        assert drop.value == pytest.approx(chosen[metric] - random[metric])
        assert drop.low > 0
    assert measured.drops["none"] == measured.drops["random"]
    lost = 100 * (1 - random["ndcg@3"] / chosen["ndcg@3"])
    assert measured.sentence.startswith("Which events are the anchors matters")
    assert f"NDCG@3 falls by {lost:.1f} %" in measured.sentence
    assert "AUC falls by" in measured.sentence
    assert ("gauc" in chosen) == (split == "global-time")


def test_a_network_that_ignores_its_anchors_shows_no_preference():
    measured = found(cares=False)
    assert measured.values["chosen"] == measured.values["random"] == measured.values["none"]
    assert {drop.value for drop in measured.drops["random"].values()} == {0}
    assert measured.sentence.startswith("No far-away preference was found in this log")
    assert "neither NDCG@3 nor AUC falls beyond chance on 40 queries" in measured.sentence


def test_a_drop_that_few_queries_cannot_rule_out_is_left_open():
    measured = found(cares=False)
    ndcg = measured.values["chosen"]["ndcg@3"]
    for high, opening in ((0.019, "No far-away preference"), (0.021, "Too few queries to say")):
        drop = replace(measured.drops["random"]["ndcg@3"], low=-0.1, high=high * ndcg)
        drops = {"random": {**measured.drops["random"], "ndcg@3": drop}}
        assert replace(measured, drops=drops).sentence.startswith(opening)


def test_the_number_of_queries_is_a_parameter():
    assert found(cares=True, mechanism_queries=7).queries == 7
    assert found(cares=True, mechanism_queries=0) is None


def test_a_network_without_anchors_is_not_measured():
    log = random_log(0)
    for network in (Knowing(log), Planted(log, cares=True)):
        network.explain = lambda asked: (np.zeros((len(asked), 0), np.int64),) * 2
        found = mechanism.measure(log, network, SETTINGS, split=TEST, max_history=9, ranks=True)
        assert found is None


def test_the_anchors_of_candidates_are_compared_set_by_set():
    """Sets of even items are alike, so are those of odd ones, and the two share nothing."""
    users, count = 6, 20
    best = np.random.default_rng(1).integers(2, 30, (users, count))
    network = Planted(random_log(0), cares=True)
    seen = mechanism.look_at(network, some_histories(users), best, 30, seed=0)
    same = [a % 2 == b % 2 for row in best for a, b in combinations(row.tolist(), 2)]
    assert seen["overlap_top"] == pytest.approx(np.mean(same))
    assert seen["overlap_chance"] < 0.1  # of 2 events of 40
    assert seen["distinct_top"] == 4
    assert seen["distinct_chance"] > 20  # of 40 draws
    assert seen["similarity_anchors"] == pytest.approx(0.9)
    assert seen["similarity_lift"] == pytest.approx(0.7)
    assert seen["newest_share"] == 0
    assert seen["newest_share_of_events"] == pytest.approx(32 / LENGTH)


class OldestDecides:
    """An item is liked by e^2 to 1 while the oldest event is there."""

    def __init__(self, anchor):
        self.anchor = anchor

    def explain(self, histories, offsets, items):
        return np.full((len(items), 1), self.anchor), np.ones((len(items), 1))

    def rank(self, histories, offsets, items):
        bounds = pairwise(histories.offsets)
        first = [histories.item[low:high].min(initial=99) for low, high in bounds]
        return 1 / (1 + np.exp(-2.0 * (np.array(first) == 0)))


def deleted(anchor, users=40):
    asked, best = some_histories(users), np.full((users, 20), 7)
    return mechanism.deletion(OldestDecides(anchor), asked, best, SETTINGS)


def test_without_its_anchor_an_item_loses_what_the_anchor_gave_it():
    changes = deleted(0)
    assert changes["anchors"].value == pytest.approx(2)
    by_chance = 2 / LENGTH  # now and then the random event is the oldest
    assert changes["random"].value == pytest.approx(by_chance, abs=0.05)
    assert changes["ratio"].low > 10


def test_the_heaviest_anchors_are_taken_out_and_then_all_of_them():
    """Anchors from the lightest to the heaviest; the event that decides is the third heaviest."""
    asked, best = some_histories(40), np.full((40, 20), 7)
    network = OldestDecides(0)
    weights = np.array([0.1, 0.2, 0.8, 0.9])
    network.explain = lambda histories, offsets, items: (
        np.tile([7, 0, 5, 6], (len(items), 1)),
        np.tile(weights, (len(items), 1)),
    )
    changes = mechanism.deletion(network, asked, best, SETTINGS)
    assert changes["anchors"].value == 0
    assert changes["all_anchors"].value == pytest.approx(2)
    assert changes["all_random"].value > changes["random"].value


def test_an_explanation_that_names_another_event_moves_nothing():
    changes = deleted(5)
    assert changes["anchors"].value == 0
    assert changes["ratio"].value == changes["ratio"].high == 0


@pytest.mark.parametrize(
    ("anchors", "expected"),
    [
        ([[0, 1], [1, 0]], 1),
        ([[0, 1], [2, 3]], 0),
        ([[0, 1], [1, 2], [0, -1]], (1 / 3 + 1 / 2 + 0) / 3),
    ],
)
def test_overlap_is_the_mean_jaccard_index_of_all_pairs(anchors, expected):
    assert mechanism.jaccard(np.array(anchors)) == pytest.approx(expected)


def test_evaluate_records_and_reports_what_the_anchors_do(monkeypatch, tmp_path, capsys):
    log = random_log(0)
    prepare(log, monkeypatch, tmp_path)
    monkeypatch.setattr(mechanism, "LEAST_EVENTS", 5)
    monkeypatch.setattr(mechanism, "CANDIDATES", 4)
    network = Counting(log, cares=True)
    monkeypatch.setattr("hpgr.evaluation.judged.load_network", lambda folder, device: network)
    evaluate.evaluate(CONFIG)
    record = json.loads((HERE.evaluation / "mechanism.json").read_text())
    page = html.unescape((HERE.evaluation / "report.html").read_text())
    printed = " ".join(capsys.readouterr().out.split())
    assert record["split"] == "test" and record["users"] > 0
    assert record["drops"]["random"]["ndcg@3"]["low"] > 0
    for text in (page, printed):
        assert record["sentence"] in text
    assert "What the anchors do" in page
    drop = record["drops"]["random"]["auc"]["value"]
    assert f"<td><b>+{drop:.4f}</b></td>" in page
    assert "1.00 times as far (95 % interval 1.00 to 1.00; no difference beyond chance)" in page
    network.explain = lambda asked: (np.zeros((len(asked), 0), np.int64),) * 2
    evaluate.evaluate(CONFIG)
    assert not (HERE.evaluation / "mechanism.json").exists()
    assert "What the anchors do" not in (HERE.evaluation / "report.html").read_text()


def test_a_workspace_is_measured_and_its_network_chooses_again(registered_project, monkeypatch):
    monkeypatch.setattr(mechanism, "LEAST_EVENTS", 5)
    monkeypatch.setattr(mechanism, "CANDIDATES", 6)
    loaded = []
    load = Scorer.load
    monkeypatch.setattr(Scorer, "load", lambda folder: loaded.append(load(folder)) or loaded[0])
    found = benchmark.measure(Workspace(registered_project), quick=True)
    for name in ("overlap_top", "overlap_random", "overlap_chance", "newest_share"):
        assert 0 <= found[name] <= 1
    chosen, none = (found[f"ndcg@10, {mode}"] for mode in ("chosen", "none"))
    assert found["ndcg_drop_no_anchors_relative"] == pytest.approx(1 - none / chosen, abs=0.01)
    assert found["auc_drop_no_anchors"] == pytest.approx(
        found["auc, chosen"] - found["auc, none"], abs=0.001
    )
    assert found["served_over_retrieval_ndcg"] >= 1 and found["deletion_ratio"] > 0
    (scorer,) = loaded
    assert isinstance(scorer, Anchored)
    modes = {m.mode for m in scorer.model.modules() if isinstance(m, Selector)}
    assert modes == {"chosen"}
