"""Two models on the same queries, in whatever vocabulary they were trained."""

from dataclasses import replace

import numpy as np
import pytest
from evaluation_log import log_of_baskets, random_log
from one_by_one import OneByOne
from sklearn.metrics import roc_auc_score
from test_next_basket import by_places, shown

from hpgr.config import load_config
from hpgr.config_rules import gate_metrics
from hpgr.data.baskets import next_basket
from hpgr.data.histories import Histories
from hpgr.data.id_map import IdMap
from hpgr.data.log import FIRST_ITEM, TEST, TRAIN, UNKNOWN
from hpgr.evaluation import protocols
from hpgr.evaluation.blend import Blend
from hpgr.evaluation.contest import Contestant, contest
from hpgr.registry.gate import Past, decide
from hpgr.runtime import UserError

CONFIG = load_config()
SETTINGS = CONFIG.evaluate.model_copy(update={"cutoffs": (3, 5), "bootstrap_samples": 200})
BASKETS = SETTINGS.model_copy(update={"baskets": True, "basket_cutoffs": (2, 4)})
REACH = 10
BY_PCTR = Blend(None, None)  # as versions were served before they had a weight


class Follower(OneByOne):
    """Likes the items near the newest one; a network of `num_items` items, with its own ids."""

    def __init__(self, num_items, noise):
        self.num_items, self.noise = num_items, noise

    def retrieve(self, histories):
        newest = histories.item[histories.offsets[1:] - 1]
        distance = np.abs(np.arange(self.num_items)[None, :] - newest[:, None])
        wobble = np.cos(np.arange(self.num_items) * 7.0) * self.noise
        return (-distance + wobble[None, :]).astype(np.float32)

    def rank(self, histories, offsets, candidates):
        return ((candidates * 37 % 101) / 101 * min(self.noise, 1.0)).astype(np.float32)

    def explain(self, histories):
        return np.zeros((len(histories), 1), np.int64), np.ones((len(histories), 1), np.float32)


class Ordering(Follower):
    """Finds like a `Follower`; its head prefers high item ids, or low ones, or says nothing."""

    def __init__(self, num_items, preference):
        super().__init__(num_items, 1.0)
        self.preference = preference

    def rank(self, histories, offsets, candidates):
        return (0.5 + self.preference * candidates / 1000).astype(np.float32)


def same_ids(log, network, *, retrieve=10, ranks=True, blend=BY_PCTR):
    ids = np.arange(log.meta.num_items)
    own = IdMap(ids, np.arange(log.meta.num_actions))
    return Contestant(network, own, REACH, retrieve, ranks, blend)


def queries_of(log, network):
    """Hidden item, what may be answered, and the network's scores, query by query."""
    for user in range(log.meta.num_users):
        rows = np.arange(*log.user_offsets[user : user + 2])
        for row in rows[log.split[rows] == TEST]:
            before = rows[(rows < row)]
            if not len(before):
                continue
            part = before[-REACH:]
            asked = Histories(
                np.array([0, len(part)]), log.item[part], log.action[part], log.timestamp[part],
                log.session[part], log.timestamp[[row]],
            )  # fmt: skip
            scores = network.retrieve(asked)[0].astype(float)
            target = log.item[row]
            seen = set(log.item[before]) if log.meta.remove_history else set()
            yield target, set(range(FIRST_ITEM, log.meta.num_items)) - seen, scores


def brute_force_ndcg(log, network, k):
    """Mean NDCG@k of a network in the log's ids, query by query."""
    gains = []
    for target, allowed, scores in queries_of(log, network):
        better = sum(scores[i] > scores[target] for i in allowed)
        tied = sum(scores[i] == scores[target] for i in allowed - {target})
        rank = 1 + better + (tied + 1) // 2
        gains.append(1 / np.log2(rank + 1) if target in allowed and rank <= k else 0.0)
    return np.mean(gains)


def brute_force_served_hits(log, network, k, retrieve):
    """Share of the queries whose hidden item is among the k most preferred of the retrieved."""
    hits = []
    for target, allowed, scores in queries_of(log, network):
        found = sorted(allowed, key=lambda item: -scores[item])[:retrieve]
        hits.append(target in sorted(found, key=lambda item: -network.preference * item)[:k])
    return np.mean(hits)


def brute_force_blended_hits(log, network, k, retrieve, weight, temperature):
    """The same where cosine / temperature and the weighted log of the probability decide."""
    hits = []
    for target, allowed, scores in queries_of(log, network):
        found = sorted(allowed, key=lambda item: -scores[item])[:retrieve]
        like = 0.5 + network.preference * np.arange(len(scores)) / 1000
        value = scores / temperature + weight * np.log(like)
        hits.append(target in sorted(found, key=lambda item: -value[item])[:k])
    return np.mean(hits)


def by_rule(log, *, remove):
    """The log with the other rule, or this one, for items seen before."""
    return replace(log, meta=replace(log.meta, remove_history=remove))


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize("split", ["leave-one-out", "global-time"])
def test_both_are_judged_on_the_same_queries(split, remove):
    log = by_rule(random_log(3, split=split), remove=remove)
    first, second = Follower(log.meta.num_items, 0.0), Follower(log.meta.num_items, 2.0)
    found = contest(log, same_ids(log, first), same_ids(log, second), SETTINGS, deciding="ndcg@3")
    change = found.metrics["ndcg@3"]
    assert change.champion == pytest.approx(brute_force_ndcg(log, first, 3))
    assert change.challenger == pytest.approx(brute_force_ndcg(log, second, 3))
    assert change.low <= change.challenger - change.champion <= change.high


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize("split", ["leave-one-out", "global-time"])
def test_a_ranking_head_shows_in_the_served_order_alone(split, remove):
    """Both find the same; each orders its own number of the best as its head says."""
    log = by_rule(random_log(9, split=split), remove=remove)
    first, second = (Ordering(log.meta.num_items, preference) for preference in (1.0, -1.0))
    pair = same_ids(log, first, retrieve=6), same_ids(log, second, retrieve=8)
    found = contest(log, *pair, SETTINGS, deciding="ndcg@3").metrics
    assert found["hr@3"].relative == 0.0
    served = found["served.hr@3"]
    assert served.champion == pytest.approx(brute_force_served_hits(log, first, 3, 6))
    assert served.challenger == pytest.approx(brute_force_served_hits(log, second, 3, 8))
    assert served.relative != 0.0


def test_each_is_served_with_its_own_weight():
    """Of one network: retrieval's own order, an older version's, and two blends."""
    log = random_log(9)
    network = Ordering(log.meta.num_items, 1.0)
    orders = {weight: Blend(weight, 5.0) for weight in (0.0, 3.0, 90.0)} | {None: BY_PCTR}
    own = {w: same_ids(log, network, retrieve=8, blend=blend) for w, blend in orders.items()}
    found = {}
    for pair in ((0.0, 3.0), (90.0, None)):
        change = contest(log, *(own[w] for w in pair), SETTINGS, deciding="ndcg@3").metrics
        assert change["hr@3"].relative == 0.0
        served = change["served.hr@3"]
        found |= {pair[0]: served.champion, pair[1]: served.challenger}
        plain = change["hr@3"].champion
    assert found[0.0] == plain
    for weight in (3.0, 90.0):
        expected = brute_force_blended_hits(log, network, 3, 8, weight, 5.0)
        assert found[weight] == pytest.approx(expected)
    assert found[None] == pytest.approx(brute_force_served_hits(log, network, 3, 8))
    assert len(set(found.values())) > 2


@pytest.mark.parametrize("settings", [SETTINGS, BASKETS], ids=["next item", "baskets"])
@pytest.mark.parametrize("split", ["leave-one-out", "global-time"])
def test_the_configuration_knows_what_is_measured(split, settings):
    log = random_log(5, split=split)
    pair = [same_ids(log, Follower(log.meta.num_items, noise)) for noise in (0.5, 1.0)]
    found = contest(log, *pair, settings, deciding="ndcg@3")
    assert set(found.metrics) == set(gate_metrics(settings, split))
    assert ("B1" in found.protocols) == any(name.startswith("basket.") for name in found.metrics)


def test_without_a_ranking_head_retrieval_is_what_is_served():
    log = random_log(9)
    network = same_ids(log, Ordering(log.meta.num_items, -1.0), ranks=False)
    found = contest(log, network, network, SETTINGS, deciding="ndcg@3").metrics
    for name in ("hr@3", "ndcg@5", "mrr"):
        assert found[f"served.{name}"] == found[name]


def test_a_ranking_head_that_says_nothing_is_no_perfect_one():
    log = random_log(9)
    network = same_ids(log, Ordering(log.meta.num_items, np.nan))
    with pytest.raises(ValueError, match="pCTR holds NaN"):
        contest(log, network, network, SETTINGS, deciding="ndcg@3")


def test_a_model_against_itself_changes_nothing():
    log = random_log(4)
    network = same_ids(log, Follower(log.meta.num_items, 1.0))
    found = contest(log, network, network, SETTINGS, deciding="ndcg@3")
    assert {change.relative for change in found.metrics.values()} == {0.0}
    assert found.metrics["ndcg@3"].p == 1.0


def test_ranking_is_judged_under_the_global_time_split_only():
    log = random_log(5, split="global-time")
    pair = [same_ids(log, Follower(log.meta.num_items, noise)) for noise in (0.5, 1.0)]
    found = contest(log, *pair, SETTINGS, deciding="auc")
    rows = np.flatnonzero(log.split == TEST)
    expected = roc_auc_score(log.label[rows], log.item[rows] * 37 % 101)
    assert found.protocols == ("R2", "K1")
    assert found.metrics["auc"].champion == pytest.approx(expected)
    assert set(found.slices) and all(
        "user" in n or "item" in n or "place" in n for n in found.slices
    )
    one = random_log(5)
    assert "auc" not in contest(one, *pair, SETTINGS, deciding="ndcg@3").metrics


def test_slices_part_the_queries():
    log = random_log(6)
    network = same_ids(log, Follower(log.meta.num_items, 1.0))
    found = contest(log, network, network, SETTINGS, deciding="ndcg@3")
    users = [change.queries for name, change in found.slices.items() if name.startswith("user")]
    assert sum(users) == len(protocols.next_item(log, TEST))


def test_another_vocabulary_gives_the_same_answers():
    """A network whose ids are the log's, reversed, scores each item as before."""
    log = random_log(7)
    num_items = log.meta.num_items
    queries = protocols.next_item(log, TEST)
    asked = queries.histories(log, REACH)
    reverse = np.arange(num_items)
    reverse[FIRST_ITEM:] = np.arange(num_items - 1, FIRST_ITEM - 1, -1)

    class Reversed(Follower):
        def retrieve(self, histories):
            names = Histories(**{**histories.__dict__, "item": reverse[histories.item]})
            return super().retrieve(names)[:, reverse]

    plain = Follower(num_items, 1.0)
    names = IdMap(reverse, np.arange(3))
    other = Contestant(Reversed(num_items, 1.0), names, REACH, 10, True, BY_PCTR)
    np.testing.assert_array_equal(
        other.retrieve(asked)[:, FIRST_ITEM:], plain.retrieve(asked)[:, FIRST_ITEM:]
    )


def test_an_item_that_a_model_does_not_know_cannot_be_retrieved():
    log = random_log(8)
    known = np.arange(log.meta.num_items)
    known[-5:] = UNKNOWN
    small = Contestant(
        Follower(log.meta.num_items - 5, 0.0), IdMap(known, np.arange(3)), REACH, 10, True, BY_PCTR
    )
    asked = protocols.next_item(log, TEST).histories(log, REACH)
    scores = small.retrieve(asked)
    assert np.isneginf(scores[:, -5:]).all()
    assert np.isfinite(scores[:, FIRST_ITEM:-5]).all()
    seen = small.ids.histories(asked)
    assert set(seen.item) <= set(range(log.meta.num_items - 5))


def basket_gains(log, own, k):
    """Recall and NDCG@k of every test basket, in loops; what `own` does not know is never found."""
    queries = next_basket(log, TEST)
    past = queries.histories(log, own.max_history)
    known = set(own.ids.known.tolist())
    gains = []
    for q, (_, hidden) in enumerate(shown(log, queries)):
        row = own.retrieve(past.take(slice(q, q + 1)))[0]
        gains.append(by_places(row, known, set(hidden), k))
    return queries.user, np.array(gains)


@pytest.mark.parametrize("remove", [True, False])
def test_both_answer_the_same_baskets_of_test(remove):
    """The champion knows fewer items; what users had before competes under either rule."""
    log = by_rule(log_of_baskets(), remove=remove)
    ids = np.arange(log.meta.num_items)
    ids[-6:] = UNKNOWN
    small = IdMap(ids, np.arange(3))
    champion = Contestant(Follower(log.meta.num_items - 6, 1.0), small, REACH, 10, True, BY_PCTR)
    challenger = same_ids(log, Follower(log.meta.num_items, 4.0))
    found = contest(log, champion, challenger, BASKETS, deciding="basket.ndcg@4")
    for k in (2, 4):
        user, before = basket_gains(log, champion, k)
        _, after = basket_gains(log, challenger, k)
        for place, name in enumerate(("recall", "ndcg")):
            change = found.metrics[f"basket.{name}@{k}"]
            assert change.champion == pytest.approx(before[:, place].mean())
            assert change.challenger == pytest.approx(after[:, place].mean())
            assert change.low <= change.challenger - change.champion <= change.high
            assert change.queries == len(user)
    assert found.protocols == ("R2", "K1", "B1")
    train = np.bincount(log.user_of_event()[log.split == TRAIN], minlength=log.meta.num_users)
    low, high = np.quantile(train[np.unique(user)], [1 / 3, 2 / 3]).astype(int)
    terciles = [train <= low, (train > low) & (train <= high), train > high]
    assert len(found.slices) == 3
    for change, inside in zip(found.slices.values(), terciles, strict=True):
        assert change.challenger == pytest.approx(after[inside[user], 1].mean())


def test_a_basket_decides_or_guards_and_a_log_without_one_is_the_users_to_mend():
    log = random_log(5, split="global-time")
    pair = [same_ids(log, Follower(log.meta.num_items, noise)) for noise in (0.5, 0.0)]
    change = {"metric": "ndcg@3", "guards": {"basket.ndcg@4": 0.01}, "min_slice_queries": 10**6}
    guarded = CONFIG.gate.model_copy(update=change)
    found = contest(log, *pair, BASKETS, deciding="ndcg@3")
    by_rule = {check.rule: check for check in decide(found, guarded, Past()).checks}
    fall = -found.metrics["basket.ndcg@4"].relative
    assert by_rule["basket.ndcg@4 holds"].passed == (fall <= 0.01)
    single = replace(log, session=np.zeros_like(log.session))  # nobody has an earlier session
    found = contest(single, *pair, BASKETS, deciding="ndcg@3")
    for rules in (guarded, guarded.model_copy(update={"metric": "basket.ndcg@4"})):
        with pytest.raises(UserError, match=r"'basket.ndcg@4'.*a test session with an earlier"):
            decide(found, rules, Past())
