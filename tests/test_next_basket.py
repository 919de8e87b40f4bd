"""Next basket (B1) against loops that say the same thing slowly, and the leaks it must not have."""

import json
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path

import ir_measures
import numpy as np
import pandas as pd
import pytest
from evaluation_log import GAP_S, make_log, random_log
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ir_measures import R, nDCG
from test_evaluate import CONFIG, metrics, prepare

from benchmarks import paired
from benchmarks.matrix import Cell
from hpgr.basket_metrics import basket_metrics
from hpgr.data.baskets import next_basket as asked_baskets
from hpgr.data.log import FIRST_ITEM, TEST, VALIDATION
from hpgr.evaluation import next_basket, retrieval
from hpgr.evaluation.baselines import PersonalFrequency, train_counts
from hpgr.evaluation.evaluate import evaluate
from hpgr.runtime import write_json
from hpgr.workspace import HERE

SETTINGS = CONFIG.evaluate.model_copy(
    update={"baskets": True, "basket_cutoffs": (2, 5), "basket_decays": (0.2, 0.9, 1.0)}
)
LATER = 2 * GAP_S
ROOT = Path(__file__).parents[1]


def gain(order, hidden, k):
    """recall@k and NDCG@k of one list of items."""
    hits = [place for place, item in enumerate(order[:k]) if item in hidden]
    ideal = sum(1 / np.log2(place + 2) for place in range(min(k, len(hidden))))
    return len(hits) / len(hidden), sum(1 / np.log2(place + 2) for place in hits) / ideal


def expected(scores, hidden, k):
    """Mean of `gain` over every order of the items with equal scores."""
    orders = [
        gain(sorted(order, key=lambda item: -scores[item]), hidden, k)
        for order in permutations(scores)
    ]
    return np.mean(orders, axis=0)


@given(
    row=arrays(np.float32, 5, elements=st.sampled_from([0.0, 0.5, 2.0])),
    hidden=st.sets(st.integers(FIRST_ITEM, FIRST_ITEM + 4), min_size=1),
    k=st.integers(1, 7),
)
@limits(max_examples=60, deadline=None)
def test_metrics_are_the_mean_over_all_orders_of_tied_items(row, hidden, k):
    scores = np.concatenate([np.full(FIRST_ITEM, 9.0, np.float32), row])[None]
    by_item = {FIRST_ITEM + n: float(value) for n, value in enumerate(row)}
    found = basket_metrics(scores, np.array([0, len(hidden)]), np.array(sorted(hidden)), [k])
    pair = [found[f"recall@{k}"][0], found[f"ndcg@{k}"][0]]
    np.testing.assert_allclose(pair, expected(by_item, hidden, k))


def test_metrics_equal_ir_measures():
    rng = np.random.default_rng(0)
    num_queries, num_items, k = 30, 40, 10
    scores = rng.permuted(np.tile(np.arange(num_items + FIRST_ITEM), (num_queries, 1)), axis=1)
    hidden = [
        FIRST_ITEM + rng.choice(num_items, rng.integers(1, 25), replace=False)
        for _ in range(num_queries)
    ]
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in hidden])])
    found = basket_metrics(scores.astype(np.float32), offsets, np.concatenate(hidden), [k])
    qrels = [ir_measures.Qrel(str(q), str(i), 1) for q, items in enumerate(hidden) for i in items]
    run = [
        ir_measures.ScoredDoc(str(q), str(i), float(scores[q, i]))
        for q in range(num_queries)
        for i in range(FIRST_ITEM, num_items + FIRST_ITEM)
    ]
    theirs = ir_measures.calc_aggregate([R @ k, nDCG @ k], qrels, run)
    np.testing.assert_allclose(
        [found[f"recall@{k}"].mean(), found[f"ndcg@{k}"].mean()], [theirs[R @ k], theirs[nDCG @ k]]
    )


def test_what_does_not_compete_is_a_miss_and_nothing_hidden_is_no_number():
    scores = np.array([[0, 0, 3, -np.inf], [0, 0, 3, 1]], dtype=np.float32)
    found = basket_metrics(scores, np.array([0, 3, 3]), np.array([1, 2, 3]), [3])
    np.testing.assert_allclose(found["recall@3"], [1 / 3, np.nan])


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        basket_metrics(np.array([[0.0, 0, np.nan]]), np.array([0, 1]), np.array([2]), [1])


def shown(log, queries):
    """Items that each query sees, and those hidden from it."""
    past = queries.histories(log, log.meta.num_events)
    seen, hidden = (
        [part.item[a:b].tolist() for a, b in pairwise(part.offsets)] for part in (past, queries)
    )
    return list(zip(seen, hidden, strict=True))


def test_a_session_belongs_where_it_begins():
    """One that goes on behind the border is asked before it, for what lies before it."""
    log = make_log(
        [[(2, 0, 1), (3, LATER, 1), (4, LATER, 1), (5, LATER + 1, 1), (6, 2 * LATER, 1)]],
        split="global-time",
        held_out=[[0, VALIDATION, VALIDATION, TEST, TEST]],
    )
    assert shown(log, asked_baskets(log, VALIDATION)) == [([2], [3, 4])]
    assert shown(log, asked_baskets(log, TEST)) == [([2, 3, 4, 5], [6])]


def test_an_item_twice_in_a_basket_is_hidden_once_and_a_first_session_is_no_query():
    log = make_log(
        [[(2, 0, 1), (9, LATER, 1), (3, LATER, 1), (9, LATER, 1)], [(4, 0, 1), (5, 0, 1)]],
        split="global-time",
        held_out=[[0, TEST, TEST, TEST], [TEST, TEST]],
    )
    queries = asked_baskets(log, TEST)
    assert shown(log, queries) == [([2], [3, 9])]
    assert (queries.user.tolist(), queries.request_time.tolist()) == ([0], [LATER])


def test_sessions_of_one_second_see_the_same_and_never_each_other():
    log = make_log(
        [[(2, 0, 1), (3, 9, 1), (4, 9, 1), (5, 9, 1), (6, 20, 1)]],
        split="global-time",
        held_out=[[0, TEST, TEST, TEST, TEST]],
    )
    log = replace(log, session=np.array([0, 1, 2, 1, 2], dtype=np.int32))
    assert shown(log, asked_baskets(log, TEST)) == [([2], [3, 5]), ([2], [4, 6])]


@pytest.mark.parametrize("split", [VALIDATION, TEST])
@pytest.mark.parametrize("seed", range(3))
def test_baskets_are_the_sessions_of_a_random_log(seed, split):
    log = random_log(seed, split="global-time")
    user = log.user_of_event()
    wanted = []
    sessions = defaultdict(list)
    for row in range(log.meta.num_events):
        sessions[int(user[row]), int(log.session[row])].append(row)
    for (who, _), rows in sessions.items():
        time = log.timestamp[rows[0]]
        past = log.item[(user == who) & (log.timestamp < time)].tolist()
        if log.split[rows[0]] == split and past:
            wanted.append((past, sorted({int(log.item[r]) for r in rows if log.split[r] == split})))
    assert len(wanted) > 5
    assert shown(log, asked_baskets(log, split)) == wanted


def test_what_happens_at_the_start_or_later_changes_no_answer():
    """Items and sessions of a user from the first second of a basket on: no model sees them."""
    log = random_log(4, split="global-time")
    queries = asked_baskets(log, TEST)
    user, model = log.user_of_event(), PersonalFrequency(log, decay=0.9)
    assert len(queries) > 20
    for q in range(len(queries)):
        one = queries.take(slice(q, q + 1))
        late = (user == one.user) & (log.timestamp >= one.request_time)
        assert late.any()
        item = np.where(late, log.meta.num_items + 1 - log.item, log.item)
        session = np.where(late, 0, log.session)
        other = replace(log, item=item.astype(np.int32), session=session.astype(np.int32))
        before, after = one.histories(log, 10**6), one.histories(other, 10**6)
        for name in ("item", "action", "timestamp", "session"):
            assert getattr(before, name).tolist() == getattr(after, name).tolist()
        assert (model.retrieve(before) == model.retrieve(after)).all()


def test_personal_frequency_counts_sessions_and_popularity_breaks_ties():
    """An item twice in a session counts once."""
    log = random_log(1, split="global-time", num_items=6)
    past = asked_baskets(log, TEST).histories(log, 10**6)
    for decay in (0.7, 1.0):
        found = PersonalFrequency(log, decay=decay).retrieve(past)
        for q in range(len(past)):
            rows = range(past.offsets[q], past.offsets[q + 1])
            held = {(int(past.session[r]), int(past.item[r])) for r in rows}
            newest = max(session for session, _ in held)
            weight = np.zeros(log.meta.num_items)
            for session, item in held:
                weight[item] += decay ** (newest - session)
            order = np.lexsort((-train_counts(log), -weight.round(9)))
            assert (np.argsort(-found[q], kind="stable") == order).all()


def test_personal_frequency_of_nobody_is_popularity():
    log = random_log(1, split="global-time")
    empty = asked_baskets(log, TEST).histories(log, 0)
    order = np.argsort(-train_counts(log), kind="stable")
    for row in PersonalFrequency(log, decay=0.9).retrieve(empty):
        assert (np.argsort(-row, kind="stable") == order).all()


class Levels:
    """Scores with few levels, by the newest item: many items tie."""

    def __init__(self, num_items):
        rng = np.random.default_rng(4)
        self.table = rng.integers(0, 4, (num_items, num_items)).astype(np.float32)

    def retrieve(self, histories):
        return self.table[histories.item[histories.offsets[1:] - 1]]


def test_answers_equal_a_loop_over_baskets(monkeypatch):
    """With ties, in blocks of three; of new items alone where the basket has some."""
    monkeypatch.setattr(retrieval, "MAX_BLOCK", 3)
    log = random_log(5, split="global-time", num_items=12)
    model, queries = Levels(log.meta.num_items), asked_baskets(log, TEST)
    found = next_basket.answers(
        log, queries, {"levels": model}, SETTINGS, max_history=200, title=""
    )
    catalogue = set(range(FIRST_ITEM, log.meta.num_items))
    without = 0
    for q, (past, hidden) in enumerate(shown(log, queries)):
        row, fresh = model.table[past[-1]], set(hidden) - set(past)
        without += not fresh
        assert found.new_size[q] == len(fresh)
        for k in (2, 5):
            for values, items, targets in (
                (found.every, catalogue, set(hidden)),
                (found.new, catalogue - set(past), fresh),
            ):
                pair = [values["levels"][f"{name}@{k}"][q] for name in ("recall", "ndcg")]
                wanted = by_places(row, items, targets, k) if targets else [np.nan] * 2
                np.testing.assert_allclose(pair, wanted)
    assert 0 < without < len(queries)


def by_places(row, items, targets, k):
    """`expected` for more items: each place goes to every item of its score in equal shares."""
    values = [0.0, 0.0]
    order = sorted(items, key=lambda item: -row[item])
    for place, at in enumerate(order[:k]):
        equal = [item for item in items if row[item] == row[at]]
        share = len(targets & set(equal)) / len(equal)
        values[0] += share / len(targets)
        values[1] += share / np.log2(place + 2)
    ideal = sum(1 / np.log2(place + 2) for place in range(min(k, len(targets))))
    return [values[0], values[1] / ideal]


def test_the_decay_that_is_best_on_validation_is_chosen_whatever_test_holds():
    """In training and validation the last basket comes again; in test the most frequent one."""
    users = [
        [(2 + u % 5, n * LATER, 1) for n in range(6)]
        + [(8 + u % 5, n * LATER, 1) for n in (6, 7)]
        + [(2 + u % 5, 8 * LATER, 1)]
        for u in range(20)
    ]
    held_out = [[0] * 7 + [VALIDATION, TEST]] * 20
    log = make_log(users, split="global-time", held_out=held_out)
    settings = SETTINGS.model_copy(update={"basket_cutoffs": (1,)})
    models, notes = next_basket.tuned_on_baskets(log, {}, settings)
    assert models["personal_frequency"].decay == 0.2
    assert notes[-1] == (
        "personal frequency (B1): decay 0.2 of 0.2, 0.9, 1 was best on 20 validation baskets "
        "(NDCG@1 1.0000)."
    )


def config(**changes):
    settings = CONFIG.evaluate.model_copy(update={"baskets": True, **changes})
    return CONFIG.model_copy(update={"evaluate": settings})


def test_the_stage_judges_baskets_where_asked_and_says_what_it_left_out(
    monkeypatch, tmp_path, capsys
):
    log = random_log(2, split="global-time", num_items=12)
    prepare(log, monkeypatch, tmp_path)
    evaluate(config())
    assert list(metrics()) == ["R2", "K1", "B1", "B1_new_items"]
    verdict = json.loads((HERE.evaluation / "verdict.json").read_text())
    assert (verdict["metric"], len(verdict["values"])) == ("basket.ndcg@10", 6)
    assert verdict["queries"] == len(asked_baskets(log, VALIDATION))
    queries = asked_baskets(log, TEST)
    new = [bool(set(hidden) - set(past)) for past, hidden in shown(log, queries)]
    every, alone = metrics()["B1"], metrics()["B1_new_items"]
    assert (every["counts"]["queries"], alone["counts"]["queries"]) == (len(new), sum(new))
    assert alone["counts"]["queries_left_out"] == len(new) - sum(new) > 0
    rows = pd.read_parquet(HERE.evaluation / "baskets.parquet")
    assert rows["user"].tolist() == queries.user.tolist()
    for model in ("hpgr", "personal_frequency", "popularity", "recency", "transitions", "ease"):
        for metric in ("recall@10", "recall@20", "ndcg@10", "ndcg@20"):
            assert every[model][metric] == pytest.approx(rows[f"{metric}_{model}"].mean(), abs=1e-6)
            mean = rows[f"new_{metric}_{model}"].mean()  # NaN is left out
            assert alone[model][metric] == pytest.approx(mean, abs=1e-6)
    found = pd.read_csv(HERE.evaluation / "plots/differences.csv")
    against = found[(found["protocol"] == "B1") & (found["metric"] == "recall@10")]["against"]
    assert "personal_frequency" in set(against)
    report = (HERE.evaluation / "report.html").read_text()
    for text in (report, " ".join(capsys.readouterr().out.split())):
        assert "Next basket, temporal (B1)" in text
        assert verdict["sentence"] in text
        assert "personal frequency" in text
    assert "New items alone" in report


def test_a_gate_by_baskets_leaves_the_served_order_to_the_next_item(monkeypatch, tmp_path):
    prepare(random_log(2, split="global-time", num_items=12), monkeypatch, tmp_path)
    gate = CONFIG.gate.model_copy(update={"metric": "basket.ndcg@10"})
    evaluate(config().model_copy(update={"gate": gate}))
    chosen = json.loads((HERE.evaluation / "like_weight.json").read_text())
    assert (chosen["metric"], len(chosen["values"])) == ("ndcg@3", 7)


def test_two_networks_are_compared_basket_by_basket(monkeypatch, tmp_path):
    """With one basket a user a resample's mean lies between the least and the largest gain."""
    monkeypatch.chdir(tmp_path)
    cells = [Cell("log", "global-time", model, "0") for model in "ab"]
    for cell, gain in zip(cells, (0.3, 0.1), strict=True):
        files = cell.workspace
        for folder in (files.evaluation, files.finetuned):
            folder.mkdir(parents=True)
        files.params.write_text((ROOT / "params.yaml").read_text())
        write_json(files.finetuned / "config.json", {"model": {"name": cell.model}})
        rows = {"user": [1, 2, 3], "request_time": [7, 8, 9]}
        queries = rows | {"target": [2, 2, 2], f"rank_{cell.model}": [1, 1, 1]}
        pd.DataFrame(queries).to_parquet(files.evaluation / "queries.parquet")
        rows |= {"items": [2, 2, 2], "new_items": [0, 1, 1]}
        for metric in ("recall@10", "ndcg@10"):
            rows[f"{metric}_{cell.model}"] = [gain, 2 * gain, 0.0]
            rows[f"new_{metric}_{cell.model}"] = [np.nan, 3 * gain, gain]
        pd.DataFrame(rows).to_parquet(files.evaluation / "baskets.parquet")
    found = paired.differences(*cells)
    for metric in ("recall@10", "ndcg@10"):
        every, new = found[f"B1 {metric}"], found[f"B1 new_{metric}"]
        assert (every.value, new.value) == (pytest.approx(0.2), pytest.approx(0.4))
        assert (every.low, every.high) == (pytest.approx(0.0), pytest.approx(0.4))
        assert (new.low, new.high) == (pytest.approx(0.2), pytest.approx(0.6))


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (random_log(0), "it needs sessionize.split: global-time."),
        (
            make_log([[(2, 0, 1), (3, 5, 1)]], split="global-time", held_out=[[0, TEST]]),
            "no test session has an earlier one of its user.",
        ),
    ],
    ids=["leave-one-out", "one session"],
)
def test_a_log_without_a_basket_to_ask_for_is_a_note(log, reason):
    found = next_basket.judge_baskets(log, {}, SETTINGS, main="hpgr", max_history=9)
    assert found.tables == []
    assert found.notes == [f"Next basket, temporal (B1) is left out: {reason}"]
