"""Networks on logs whose rule is planted: what decides is known, so is what must be found."""

import numpy as np
import pytest
import torch

from benchmarks import planted
from hpgr.data.log import EventLog
from hpgr.model.attention.cover import time_bucket


@pytest.fixture(scope="module")
def opinions(tmp_path_factory):
    """A network trained on planted opinions, its validation, and its workspace."""
    cfg = planted.settings(planted.OPINIONS)
    root = tmp_path_factory.mktemp("opinions") / "project"
    workspace = planted.write(planted.opinions(), cfg, root)
    return *planted.train(cfg, workspace), workspace


def test_one_old_event_alone_has_the_opinion_about_a_candidate(opinions):
    _, validation, workspace = opinions
    log = EventLog.open(workspace.arrays)
    kinds = np.full(log.meta.num_items, -1)
    kinds[np.diff(log.category_offsets) > 0] = log.category
    assert len(validation.rows) > 1000
    for row, user in zip(validation.rows, validation.user, strict=True):
        before = np.arange(log.user_offsets[user], row)
        (same,) = np.flatnonzero(kinds[log.item[before]] == kinds[log.item[row]])
        assert log.label[before[same]] == log.label[row]
        assert row - before[same] > 40


def test_the_event_that_decides_is_an_anchor_and_is_read(opinions):
    scorer, validation, _ = opinions
    assert planted.recall(scorer, validation) >= 0.9
    assert planted.area(scorer, validation) >= 0.9


def test_without_its_anchors_the_network_knows_next_to_nothing(opinions):
    scorer, validation, _ = opinions
    for anchors in ("random", "none"):
        assert planted.area(scorer, validation, anchors=anchors) <= 0.6


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """The workspace of planted sessions."""
    cfg = planted.settings(planted.SESSIONS)
    return planted.write(planted.sessions(), cfg, tmp_path_factory.mktemp("sessions") / "project")


def test_the_item_of_the_last_session_is_what_follows(sessions):
    log = EventLog.open(sessions.arrays)
    gap = np.diff(log.timestamp)[np.diff(log.user_of_event()) == 0]
    assert len(set(time_bucket(torch.from_numpy(gap)).tolist())) == 1
    for start, end in zip(log.user_offsets, log.user_offsets[1:], strict=False):
        assert set(log.session[start:end]) == {0, 1, 2, 3, 4}
        items = log.item[start:end][log.session[start:end] == 4]
        assert np.bincount(items[:-2]).argmax() == items[-2] == items[-1]


def test_the_session_module_knows_what_position_and_time_do_not_tell(sessions):
    def ndcg(**changes):
        change = {f"model.{key}": value for key, value in changes.items()}
        scorer, validation = planted.train(planted.settings(planted.SESSIONS, change), sessions)
        return validation(scorer.model, scorer.device)["validation_ndcg@10"]

    found = ndcg()
    assert found >= ndcg(sessions=False) + 0.1
    assert found >= ndcg(name="hstu") + 0.1
