"""Windows that queries share give what a history of its own gives to each."""

import numpy as np
import pytest
import torch
from evaluation_log import random_log
from hypothesis import given
from hypothesis import strategies as st
from test_bounded import long_user_log
from test_leaks import catalogue, settings, trained_looking

import hpgr.model.scoring
from hpgr.data.log import TEST
from hpgr.data.shared_windows import SharedWindows
from hpgr.evaluation import protocols, ranking, retrieval
from hpgr.model.interface import build
from hpgr.model.scoring import Scorer

REACH = {"max_history": 40}  # no user of the log has more


@pytest.fixture(params=["hpgr", "hstu", "mtgr"])
def scorer(request, monkeypatch):
    monkeypatch.setattr(hpgr.model.scoring, "TOKENS_AT_A_TIME", 60)
    model = build(settings(name=request.param), catalogue(), ranking=True)
    return Scorer(trained_looking(model), torch.device("cpu"), **REACH)


@pytest.fixture(scope="module")
def log():
    return random_log(3, num_items=40, split="global-time")


def test_a_shared_window_retrieves_as_a_history_of_its_own(scorer, log):
    queries = protocols.next_item(log, TEST)
    shared = retrieval.shared_scores(scorer, log, queries, **REACH)
    own = scorer.retrieve(queries.histories(log, **REACH))
    assert len(queries.windows(log, **REACH)) < len(queries)
    np.testing.assert_allclose(shared[:, 2:], own[:, 2:], atol=2e-5)
    assert np.isneginf(shared[:, :2]).all()


def test_a_shared_window_ranks_as_a_history_of_its_own(scorer, log):
    asked = protocols.labelled(log, TEST)
    assert (asked.end == log.user_offsets[asked.user]).any(), "some are asked without a history"
    shared = ranking.score(scorer, log, asked, title="shared", **REACH)
    own = scorer.rank(asked.histories(log, **REACH), asked.offsets, asked.item)
    np.testing.assert_allclose(shared, own, atol=2e-5)


@given(
    past=st.integers(0, 90), steps=st.sets(st.integers(0, 90), min_size=1), reach=st.integers(1, 50)
)
def test_a_query_lacks_less_than_a_step_of_the_newest_events(past, steps, reach):
    log = long_user_log(events=200, held_out=10)
    end = np.array(sorted(past + n for n in steps))
    user = np.zeros(len(end), dtype=np.int64)
    windows = SharedWindows.of(log, user, end, log.timestamp[end], max_history=reach)
    assert windows.bounds[0] == 0 and windows.bounds[-1] == len(end)
    assert (windows.end - windows.first <= reach).all()
    assert (windows.request_time == log.timestamp[windows.end]).all()
    seen = windows.visible(end)
    step = max(1, reach // 8)
    assert (seen <= np.minimum(end, reach)).all()
    assert (seen > np.minimum(end, reach) - step).all()


def test_users_share_no_window(log):
    queries = protocols.next_item(log, TEST)
    windows = queries.windows(log, **REACH)
    for low, high in zip(windows.bounds[:-1], windows.bounds[1:], strict=True):
        assert len(set(queries.user[low:high])) == 1
    (part,) = windows.parts()
    histories = part.histories(log)
    own = queries.take(windows.bounds[1:] - 1).histories(log, **REACH)
    assert all((getattr(histories, name) == getattr(own, name)).all() for name in vars(own))
