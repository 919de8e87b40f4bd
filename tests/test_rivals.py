"""The judged model among its rivals on validation: who is ahead is planted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_log import GAP_S, make_log, random_log
from test_evaluate import CONFIG, Knowing
from test_leaks import settings
from test_next_basket import by_places, shown

from hpgr.data.baskets import next_basket as asked_baskets
from hpgr.data.log import TEST, VALIDATION, EventLog
from hpgr.evaluation import next_basket, protocols, retrieval, rivals
from hpgr.evaluation.compare import Estimate
from hpgr.evaluation.headline import label
from hpgr.evaluation.rivals import Standing
from hpgr.evaluation.simple_rankers import SimpleRankers
from hpgr.model.catalogue import Catalogue
from hpgr.model.interface import build
from hpgr.model.repeat_counts import Repeats
from hpgr.model.scoring import Scorer
from hpgr.model.successors import Additions

SETTINGS = CONFIG.evaluate
REACH = {"max_history": 200}


class Ignorant(Knowing):
    """Finds no item, and gives every candidate the same probability."""

    def __init__(self, log):
        super().__init__(log)
        self.answers = {}

    def rank(self, histories, offsets, candidates):
        return np.full(len(candidates), 0.5, dtype=np.float32)


class Foreseeing(Knowing):
    """Knows the validation items in place of the test items."""

    def __init__(self, log):
        super().__init__(log)
        queries = protocols.next_item(log, VALIDATION)
        for time, item in zip(queries.request_time, queries.target, strict=True):
            self.answers.setdefault(int(time), []).append(int(item))


def standing(network, log, metric="ndcg"):
    baselines, _ = retrieval.tuned_baselines(log, SETTINGS, **REACH)
    models = {"hpgr": network, **baselines}
    return rivals.retrieval_standing(log, models, SETTINGS, metric=metric, **REACH)


def test_a_model_that_knows_stays():
    log = random_log(0)
    found = standing(Foreseeing(log), log)
    assert found.serve_instead is None
    assert found.sentence.startswith("No baseline is ahead of hpgr: on 40 validation queries")


def test_a_model_that_knows_nothing_is_named_with_the_one_to_serve():
    log = random_log(0)
    found = standing(Ignorant(log), log)
    best = max((m for m in found.values if m != "hpgr"), key=lambda m: found.values[m]["ndcg@3"])
    assert found.serve_instead == best == "transitions"  # the users walk along the catalogue
    for model in ("hpgr", best):
        for metric in ("ndcg@3", "hr@3"):
            assert f"{found.values[model][metric]:.4f}" in found.sentence
    assert found.sentence.count(".") == found.sentence.count("0.") + 1  # one sentence


def test_values_are_means_over_the_validation_queries():
    log = random_log(1)
    baselines, _ = retrieval.tuned_baselines(log, SETTINGS, **REACH)
    queries = protocols.next_item(log, VALIDATION)
    scores = baselines["popularity"].retrieve(queries.histories(log, 200))
    hits = []
    for q, (user, end, target) in enumerate(
        zip(queries.user, queries.end, queries.target, strict=True)
    ):
        seen = set(log.item[log.user_offsets[user] : end].tolist())
        mine = scores[q, target]
        others = [s for i, s in enumerate(scores[q]) if i not in seen and i >= 2 and i != target]
        better, tied = sum(s > mine for s in others), sum(s == mine for s in others)
        hits.append(target not in seen and 1 + better + (tied + 1) // 2 <= 3)
    found = standing(Ignorant(log), log, metric="hr")
    assert found.values["popularity"]["hr@3"] == pytest.approx(np.mean(hits))


def test_the_test_split_plays_no_part():
    log = random_log(0)
    item = log.item.copy()
    item[log.split == TEST] = 2
    other = EventLog(**{**log.__dict__, "item": item})
    one, two = (standing(Foreseeing(log), part) for part in (log, other))
    assert one.record() == two.record()


def test_a_ranking_model_is_compared_by_auc_with_the_simple_rankers():
    log = random_log(2, split="global-time")
    simple = SimpleRankers(log, SETTINGS)
    good = rivals.ranking_standing(log, "hpgr", Knowing(log), simple, SETTINGS, **REACH)
    bad = rivals.ranking_standing(log, "hpgr", Ignorant(log), simple, SETTINGS, **REACH)
    means = {"item_mean", "user_mean", "item_plus_user_mean"}
    assert set(good.values) == {"hpgr", "boosted_trees", "fold_in", *means}
    assert bad.values["hpgr"]["auc"] == 0.5
    assert bad.serve_instead == bad.best_rival != "user_mean"
    assert "AUC 0.5000" in bad.sentence
    assert f"Serve {label(bad.best_rival)} instead of hpgr" in bad.sentence
    assert good.values["hpgr"]["auc"] > 0.7


def test_labels_of_one_kind_rank_nothing():
    log = random_log(2, split="global-time")
    same = EventLog(**{**log.__dict__, "label": np.ones_like(log.label)})
    simple = SimpleRankers(same, SETTINGS)
    assert rivals.ranking_standing(same, "n", Knowing(log), simple, SETTINGS, **REACH) is None


def test_rivals_are_called_by_plain_names():
    values = {"hpgr": {"auc": 0.7}, "fold_in": {"auc": 0.8}, "boosted_trees": {"auc": 0.9}}
    ahead = Estimate(-0.1, -0.2, 0.0, 1.0)
    for rival, name in (
        ("fold_in", "linear-Gaussian fold-in"),
        ("boosted_trees", "gradient-boosted trees"),
    ):
        pair = {"hpgr": values["hpgr"], rival: values[rival]}
        behind = Standing("hpgr", "auc", 9, pair, {rival: ahead})
        assert behind.record()["serve_instead"] == rival
        assert behind.sentence.startswith(f"Serve {name} instead of hpgr: on 9 validation")
        leads = Standing("hpgr", "auc", 9, pair | {"hpgr": {"auc": 0.95}}, {rival: ahead})
        assert f"next is {name} with AUC" in leads.sentence


def test_equal_is_enough():
    values = {"hpgr": {"hr@10": 0.5}, "ease": {"hr@10": 0.5}, "recency": {"hr@10": 0.1}}
    none = Estimate(0.0, 0.0, 0.0, 1.0)
    assert Standing("hpgr", "hr@10", 9, values, dict.fromkeys(values, none)).serve_instead is None


class Frequent(Ignorant):
    """Counts the events of an item that it reads: the newest alone weighs a half more."""

    def retrieve(self, histories):
        scores = np.zeros((len(histories), self.num_items), dtype=np.float32)
        query = np.repeat(np.arange(len(histories)), histories.length)
        np.add.at(scores, (query, histories.item), 1.0)
        newest = histories.offsets[1:] - 1
        scores[np.arange(len(histories)), histories.item[newest]] += 0.5
        return scores


BASKETS = SETTINGS.model_copy(update={"baskets": True, "basket_cutoffs": (4, 6)})


def basket_standing(network, log):
    baselines, _ = retrieval.tuned_baselines(log, BASKETS, **REACH)
    models = {"hpgr": network, **baselines}
    models |= next_basket.tuned_on_baskets(log, models, BASKETS)[0]
    return models, rivals.basket_standing(log, models, BASKETS, **REACH)


@pytest.mark.parametrize("remove", [True, False])
def test_baskets_are_judged_one_by_one_by_every_model(remove):
    log = random_log(3, split="global-time", num_items=12)
    log = replace(log, meta=replace(log.meta, remove_history=remove))
    models, found = basket_standing(Frequent(log), log)
    queries = asked_baskets(log, VALIDATION)
    past = queries.histories(log, log.meta.num_events)
    assert set(found.values) == {
        *("hpgr", "popularity", "recency", "transitions", "ease", "personal_frequency"),
    }
    assert (found.metric, found.queries) == ("basket.ndcg@4", len(queries))
    for name, model in models.items():
        gains = [
            by_places(row, range(2, log.meta.num_items), set(hidden), 4)
            for row, (_, hidden) in zip(model.retrieve(past), shown(log, queries), strict=True)
        ]
        recall, ndcg = np.mean(gains, axis=0)
        assert found.values[name] == pytest.approx(
            {"basket.ndcg@4": ndcg, "basket.recall@4": recall}
        )
    best = max(found.differences, key=lambda name: found.values[name]["basket.ndcg@4"])
    gain = found.values["hpgr"]["basket.ndcg@4"] - found.values[best]["basket.ndcg@4"]
    assert found.differences[best].value == pytest.approx(gain)
    assert found.differences[best].low < gain < found.differences[best].high


def test_who_is_behind_in_baskets_reads_so_in_one_sentence():
    """Users take the same items again: their counts find them, the order of events less well."""
    log = log_of_the_same_baskets()
    _, found = basket_standing(Ignorant(log), log)
    assert found.serve_instead == "personal_frequency"
    assert found.sentence.startswith(
        "Serve personal frequency instead of hpgr: on 8 validation baskets it reaches NDCG@4 "
        "1.0000 and recall@4 1.0000 against NDCG@4 "
    )
    assert basket_standing(Frequent(log), log)[1].serve_instead is None


def test_a_network_is_judged_with_its_count_of_what_was_taken_before():
    """After a pause it outweighs every cosine, so that each basket is found whole."""
    log = log_of_the_same_baskets()
    network = build(settings(), Catalogue.of(log), ranking=False)
    counts = Repeats(weight_after_pause=5.0, gap_s=GAP_S)
    for repeats, found in ((counts, True), (Repeats(), False)):
        scorer = Scorer(network, torch.device("cpu"), 40, additions=Additions(repeats))
        gain = basket_standing(scorer, log)[1].values["hpgr"]["basket.ndcg@4"]
        assert (gain > 1 - 1e-9) == found


def log_of_the_same_baskets():
    """Each of eight users takes three items of nine, the same in four sessions."""
    random = np.random.default_rng(0)
    own = [random.choice(9, 3, replace=False) + 2 for _ in range(8)]
    users = [
        [(int(item), day * 86_400, 1) for day in range(4) for item in random.permutation(items)]
        for items in own
    ]
    held_out = [[0] * 6 + [VALIDATION] * 3 + [TEST] * 3] * 8
    return make_log(users, split="global-time", held_out=held_out)


def test_the_baskets_of_test_play_no_part():
    log = random_log(3, split="global-time", num_items=12)
    item = log.item.copy()
    item[log.split == TEST] = 2
    (_, one), (_, two) = (
        basket_standing(Frequent(log), part) for part in (log, replace(log, item=item))
    )
    assert one.record() == two.record()


@pytest.mark.parametrize(
    "log", [random_log(0), replace(log_of_the_same_baskets(), split=np.zeros(96, dtype=np.int8))]
)
def test_without_a_validation_basket_nobody_is_judged_by_them(log):
    models = next_basket.tuned_on_baskets(log, {}, BASKETS)[0]
    assert not models or rivals.basket_standing(log, models, BASKETS, **REACH) is None


def test_picked_candidates_are_those_of_the_queries():
    asked = protocols.labelled(random_log(2, split="global-time"), VALIDATION)
    index = np.array([0, 3, len(asked) - 1])
    picked = asked.take(index)
    for place, query in enumerate(index):
        one, other = picked.take(slice(place, place + 1)), asked.take(slice(query, query + 1))
        for name, value in one.__dict__.items():
            assert (value == getattr(other, name)).all(), name
