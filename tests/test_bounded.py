"""Memory of a batch of queries: bounded by events and scores, not by the number of queries."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from evaluation_log import make_log, random_log
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from test_contest import REACH, SETTINGS, Follower, same_ids

import hpgr.data.histories
from hpgr.data import baskets
from hpgr.data.histories import bounded
from hpgr.data.log import FIRST_ITEM, TEST, VALIDATION
from hpgr.evaluation import protocols, ranking, retrieval
from hpgr.evaluation.contest import contest
from hpgr.training import validation
from hpgr.training.validation import Validation

LIMIT = 3000


@given(
    events=st.lists(st.integers(0, 50), max_size=40),
    queries=st.integers(1, 10),
    most=st.integers(1, 120),
)
def test_slices_cover_all_queries_and_keep_both_limits(events, queries, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hpgr.data.histories, "EVENTS_AT_A_TIME", most)
        slices = list(bounded(np.array(events, dtype=np.int64), queries=queries))
    assert [q for s in slices for q in range(s.start, s.stop)] == list(range(len(events)))
    for part in slices:
        assert 1 <= part.stop - part.start <= queries
        assert sum(events[part]) <= most or part.stop - part.start == 1
    for part, after in pairwise(slices):  # none is smaller than it must be
        full = part.stop - part.start == queries
        assert full or sum(events[part]) + events[after.start] > most


def long_user_log(*, events, held_out):
    """One user of `events` events, the last `held_out` each for validation and test, and others."""
    random = np.random.default_rng(0)
    item = random.integers(FIRST_ITEM, 300, events)
    long = [(int(i), 10**9 + 60 * n, int(i) % 2) for n, i in enumerate(item)]
    train = [0] * (events - 2 * held_out)
    others = [[(5 + u, 10**9 + n, 1) for n in range(5)] for u in range(3)]
    return make_log(
        [long, *others],
        split="global-time",
        held_out=[train + [VALIDATION] * held_out + [TEST] * held_out, *([[0] * 5] * 3)],
    )


@pytest.fixture
def largest(monkeypatch):
    """Events of the largest batch of histories that was copied; the limit is LIMIT."""
    seen = [0]
    plain = hpgr.data.histories.histories

    def counted(*args):
        found = plain(*args)
        seen[0] = max(seen[0], int(found.offsets[-1]))
        return found

    for module in (baskets, validation):
        monkeypatch.setattr(module, "histories", counted)
    monkeypatch.setattr(hpgr.data.histories, "EVENTS_AT_A_TIME", LIMIT)
    return seen


def test_retrieval_holds_no_more_events_than_the_limit(largest, monkeypatch):
    """Sixty queries of one user of a thousand events: 57,000 events where all are held."""
    log = long_user_log(events=1000, held_out=60)
    queries = protocols.next_item(log, TEST)
    models = {"near": Follower(log.meta.num_items, 1.0)}
    draw = {"max_history": REACH, "title": ""}
    found = retrieval.run(log, queries, models, SETTINGS, **draw)[0]["near"]
    assert 1000 < largest[0] <= LIMIT
    monkeypatch.setattr(hpgr.data.histories, "EVENTS_AT_A_TIME", 10**9)
    whole = retrieval.run(log, queries, models, SETTINGS, **draw)[0]["near"]
    assert largest[0] > 50_000
    assert (found.ranks == whole.ranks).all() and (found.top == whole.top).all()


def test_the_contest_and_the_ranking_protocol_hold_no_more_either(largest, monkeypatch):
    log = long_user_log(events=1000, held_out=60)
    network = Follower(log.meta.num_items, 1.0)
    long_memory = same_ids(log, network)
    long_memory = type(long_memory)(**{**vars(long_memory), "max_history": 900})
    pair = (log, long_memory, same_ids(log, Follower(log.meta.num_items, 5.0)), SETTINGS)
    bounded_figures = contest(*pair, deciding="ndcg@5")
    assert 900 <= largest[0] <= LIMIT
    candidates = protocols.labelled(log, TEST)
    scores = ranking.score(network, log, candidates, max_history=900, title="")
    assert 900 <= largest[0] <= LIMIT
    monkeypatch.setattr(hpgr.data.histories, "EVENTS_AT_A_TIME", 10**9)
    assert repr(contest(*pair, deciding="ndcg@5")) == repr(bounded_figures)
    assert (ranking.score(network, log, candidates, max_history=900, title="") == scores).all()


class Near:
    """Stands for a trained network behind its scorer: likes items near the newest one."""

    def __init__(self, num_items, *_):
        self.own = Follower(num_items, 1.0)

    def retrieve(self, histories):
        scores = self.own.retrieve(histories)
        scores[:, :FIRST_ITEM] = -np.inf
        return scores

    def rank_rows(self, histories, rows):
        end = np.repeat(histories.offsets[:-1], np.diff(rows.offsets)) + rows.visible
        newest = np.where(rows.visible > 0, histories.item[np.maximum(end, 1) - 1], 0)
        return pctr(newest, rows.item)


def pctr(newest, candidate):
    return (np.abs(newest - candidate) % 17 / 17).astype(np.float32)


def brute_force_validation(log, network, rows):
    """HR@10, NDCG@10 and AUC, query by query."""
    hits, gains, probability = [], [], []
    start = np.repeat(log.user_offsets[:-1], np.diff(log.user_offsets))
    for row in rows:
        before = np.arange(start[row], row)
        part = before[-REACH:]
        asked = hpgr.data.histories.Histories(
            np.array([0, len(part)]), log.item[part], log.action[part], log.timestamp[part],
            log.session[part], log.timestamp[[row]],
        )  # fmt: skip
        scores = network.retrieve(asked)[0]
        others = np.setdiff1d(np.arange(FIRST_ITEM, log.meta.num_items), log.item[before])
        rank = int((scores[others] > scores[log.item[row]]).sum())
        hit = rank < 10 and log.item[row] not in log.item[before]  # a repeat is removed
        hits.append(hit)
        gains.append(1 / np.log2(rank + 2) if hit else 0.0)
        earlier = part[log.timestamp[part] < log.timestamp[row]]
        newest = log.item[earlier[-1]] if len(earlier) else 0
        probability.append(pctr(newest, log.item[row]))
    area = roc_auc_score(log.label[rows], probability)
    return {"hr@10": np.mean(hits), "ndcg@10": np.mean(gains), "auc": area}


@pytest.mark.parametrize("limit", [50, 10**9])
def test_validation_gives_the_same_scores_in_parts(limit, monkeypatch):
    log = random_log(3, split="global-time")
    monkeypatch.setattr(hpgr.data.histories, "EVENTS_AT_A_TIME", limit)
    monkeypatch.setattr(validation, "Scorer", lambda model, *_: model)
    if limit == 50:
        monkeypatch.setattr(validation, "CELLS", 100)  # three queries' scores
    measured = Validation(log, max_history=REACH, num_queries=10**6, num_labelled=10**6, seed=0)
    network = Near(log.meta.num_items)
    scores = measured(network, None)
    expected = brute_force_validation(log, network, measured.rows)
    expected["heads"] = (scores["validation_ranking"] + expected["ndcg@10"]) / 2
    assert (
        scores.items() >= {f"validation_{k}": pytest.approx(v) for k, v in expected.items()}.items()
    )


def test_validation_of_one_long_user_stays_small(monkeypatch):
    """512 queries of a user of 50,000 events: their pasts together are 25 million events."""
    log = long_user_log(events=50_000, held_out=600)
    monkeypatch.setattr(validation, "Scorer", lambda model, *_: model)
    measured = Validation(log, max_history=REACH, num_queries=512, num_labelled=512, seed=0)
    assert len(measured.rows) == 512
    tracemalloc.start()
    measured(Near(log.meta.num_items), None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50 * 2**20  # one copy of all the pasts' item ids alone is 100 MB
