"""The weight of the served order: chosen on validation by brute force as by `evaluate`."""

import json
import shutil
from dataclasses import replace

import numpy as np
import own_run
import pytest
from evaluation_log import make_log, random_log
from params_text import params_of
from test_blend import TEMPERATURE, Toy
from test_contest import REACH, SETTINGS
from test_evaluate import CONFIG, prepare

from hpgr.config import ConfigError, resolve
from hpgr.data.histories import Histories
from hpgr.data.log import FIRST_ITEM, TEST, TRAIN, VALIDATION
from hpgr.evaluation import evaluate, like_weight
from hpgr.workspace import HERE

GRID = (0.0, 0.1, 1.0, 5.0)
WHOLE = SETTINGS.model_copy(
    update={"like_weights": GRID, "retrieve": 8, "tuning_queries": 10**6, "cutoffs": (3, 5)}
)


def choose(log, network, settings=WHOLE, metric="ndcg@3"):
    rule = log.meta.remove_history
    asked = {"temperature": TEMPERATURE, "max_history": REACH, "metric": metric}
    both = like_weight.choose(log, network, settings, rules=[rule, not rule], **asked)
    assert like_weight.choose(log, network, settings, rules=[rule], **asked)[rule] == both[rule]
    return both[rule]


def brute_force(log, network, weight, metric):
    """Mean of the metric over every validation event with an earlier one, in plain Python."""
    name, _, k = metric.partition("@")
    gains = []
    for user in range(log.meta.num_users):
        rows = range(*log.user_offsets[user : user + 2])
        for row in rows:
            before = [r for r in rows if r < row]
            if log.split[row] != VALIDATION or not before:
                continue
            part = np.array(before[-REACH:])
            asked = Histories(
                np.array([0, len(part)]), log.item[part], log.action[part], log.timestamp[part],
                log.session[part], log.timestamp[[row]],
            )  # fmt: skip
            cosine = network.retrieve(asked)[0].astype(float)
            seen = {int(log.item[r]) for r in before} if log.meta.remove_history else set()
            allowed = set(range(FIRST_ITEM, log.meta.num_items)) - seen
            best = sorted(allowed, key=lambda i: -cosine[i])[: WHOLE.retrieve]
            best.sort(key=lambda i: -(cosine[i] / TEMPERATURE + weight * np.log(network.like[i])))
            rank = best.index(log.item[row]) + 1 if log.item[row] in best else 10**9
            gain = 1.0 if name == "hr" else 1 / np.log2(rank + 1)
            gains.append(gain if rank <= int(k) else 0.0)
    return float(np.mean(gains))


@pytest.mark.parametrize("metric", ["ndcg@3", "hr@5"])
@pytest.mark.parametrize("split", ["leave-one-out", "global-time"])
def test_the_choice_is_that_of_a_search_by_brute_force(split, metric):
    chosen = set()
    for seed in range(6):
        log = random_log(seed, split=split)
        network = Toy(log.meta.num_items)
        expected = {weight: brute_force(log, network, weight, metric) for weight in GRID}
        found = choose(log, network, metric=metric)
        assert found.values == pytest.approx(expected)
        assert found.like_weight == min(GRID, key=lambda w: (-expected[w], w))
        chosen.add(found.like_weight)
    assert len(chosen) > 1  # the search has something to find


def test_each_rule_for_seen_items_has_a_choice_of_its_own():
    log = random_log(3)
    network = Toy(log.meta.num_items)
    asked = {"temperature": TEMPERATURE, "max_history": REACH, "metric": "ndcg@3"}
    found = like_weight.choose(log, network, WHOLE, rules=[True, False], **asked)
    for rule in (True, False):
        own = replace(log, meta=replace(log.meta, remove_history=rule))
        expected = {weight: brute_force(own, network, weight, "ndcg@3") for weight in GRID}
        assert found[rule].values == pytest.approx(expected)
    assert found[True].values != found[False].values


def test_of_equal_weights_the_smallest_is_taken_whatever_their_order():
    log = random_log(0)
    network = Toy(log.meta.num_items)
    network.like[:] = 0.5  # no weight moves anything
    settings = WHOLE.model_copy(update={"like_weights": (2.0, 0.5, 0.0, 0.5)})
    found = choose(log, network, settings)
    assert found.like_weight == 0.0 and list(found.values) == [0.0, 0.5, 2.0]


def test_no_more_queries_are_asked_than_tuning_queries():
    log = random_log(0, split="global-time")
    found = choose(log, Toy(log.meta.num_items), WHOLE.model_copy(update={"tuning_queries": 7}))
    assert found.queries == 7


def test_without_a_validation_query_the_order_is_retrievals():
    log = make_log([[(2, 1, 1), (3, 2, 1), (4, 3, 1)]], held_out=[[TRAIN, TRAIN, TEST]])
    found = choose(log, Toy(log.meta.num_items))
    assert (found.like_weight, found.queries) == (0.0, 0)
    assert "Served order: retrieval alone" in found.sentence


def rewritten(log, seed):
    """The log with other items, actions and labels in its test events."""
    test = np.asarray(log.split) == TEST
    rng = np.random.default_rng(seed)
    item, label = np.array(log.item), np.array(log.label)
    item[test] = rng.integers(FIRST_ITEM, log.meta.num_items, test.sum())
    label[test] = 1 - label[test]
    return replace(log, item=item, label=label)


class Liked(Toy):
    """The toy as the evaluate stage loads it."""

    def explain(self, histories):
        return np.full((len(histories), 1), -1), np.zeros((len(histories), 1), np.float32)


def judged(log, monkeypatch, folder, **gate):
    """The files of the evaluate stage that hold the weight, and its metrics."""
    folder.mkdir()
    prepare(log, monkeypatch, folder)
    network = Liked(log.meta.num_items)
    monkeypatch.setattr("hpgr.evaluation.judged.load_network", lambda *_: network)
    settings = CONFIG.evaluate.model_copy(update={"like_weights": GRID, "retrieve": 8})
    cfg = CONFIG.model_copy(
        update={"evaluate": settings, "gate": CONFIG.gate.model_copy(update=gate)}
    )
    evaluate.evaluate(cfg)
    names = ("rules", "like_weight", "metrics")
    return [json.loads((HERE.evaluation / f"{name}.json").read_text()) for name in names]


@pytest.mark.parametrize("split", ["leave-one-out", "global-time"])
def test_test_events_have_no_say(split, monkeypatch, tmp_path):
    log = random_log(2, split=split)
    rules, record, figures = judged(log, monkeypatch, tmp_path / "one")
    for seed in range(3):
        other = judged(rewritten(log, seed), monkeypatch, tmp_path / f"other{seed}")
        assert other[:2] == [rules, record]
        assert other[2] != figures


@pytest.mark.parametrize(("metric", "decides"), [("hr@10", "hr@10"), ("auc", "ndcg@3")])
def test_the_gates_metric_decides_if_it_is_one_of_retrieval(metric, decides, monkeypatch, tmp_path):
    log = random_log(2, split="global-time")
    rules, record, _ = judged(log, monkeypatch, tmp_path / "one", metric=metric)
    assert record["metric"] == decides and record["split"] == "validation"
    assert list(record["values"]) == ["0", "0.1", "1", "5"]
    assert rules["like_weight"] == record["like_weight"]
    page = (HERE.evaluation / "report.html").read_text()
    for weight, value in record["values"].items():
        assert f"{value:.4f} at {weight}" in page


def test_a_network_that_does_not_rank_is_served_in_retrievals_order(monkeypatch, tmp_path):
    prepare(random_log(0), monkeypatch, tmp_path, ranking_head=False)
    evaluate.evaluate(CONFIG)
    assert json.loads((HERE.evaluation / "rules.json").read_text())["like_weight"] == 0


def test_the_served_metrics_are_those_of_what_is_recommended(monkeypatch, tmp_path):
    """The trained network at each weight: every hidden item stands where `evaluate` says."""
    monkeypatch.chdir(tmp_path)
    users = own_run.walks(num_users=20, repeats=False)
    own_run.write_log(users)
    cfg = own_run.config(evaluate__retrieve=10)
    for stage in (own_run.sessionize, own_run.pretrain, own_run.finetune):
        stage(cfg)
    lists = {}
    for weight in (0.0, 1.5, 100.0):
        choice = like_weight.Choice(weight, "ndcg@10", 1, {weight: 0.0})
        monkeypatch.setattr(like_weight, "choose", lambda *_, chosen=choice, **__: {True: chosen})
        own_run.evaluate(cfg)
        shutil.rmtree("bundle", ignore_errors=True)
        answers = lists[weight] = own_run.served(cfg, users, 10)
        hidden = [events[-1][0] for events in users.values()]
        places = [a.index(h) + 1 if h in a else 99 for a, h in zip(answers, hidden, strict=True)]
        found = own_run.metrics()["R1"]["hpgr_then_rank"]
        gains = [1 / np.log2(p + 1) if p <= 10 else 0.0 for p in places]
        assert found["hr@10"] == pytest.approx(np.mean(np.array(places) <= 10), abs=1e-6)
        assert found["ndcg@10"] == pytest.approx(np.mean(gains), abs=1e-6)
    assert lists[0.0] != lists[1.5] != lists[100.0]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([0.1, 1], "evaluate.like_weights: found [0.1, 1.0], expected 0 among them"),
        ([], "evaluate.like_weights: found [], expected 0 among them"),
        ([0, -1], "evaluate.like_weights.1"),
        ([0, 101], "evaluate.like_weights.1"),
        ([0, float("nan")], "evaluate.like_weights.1"),
        ([0, "x"], "evaluate.like_weights.1"),
    ],
)
def test_a_grid_that_cannot_work_is_refused(grid, message):
    raw = params_of("quick")
    raw["evaluate"]["like_weights"] = grid
    with pytest.raises(ConfigError) as reported:
        resolve(raw)
    assert message in str(reported.value)
