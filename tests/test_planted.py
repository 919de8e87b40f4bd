"""Networks on logs whose rule is planted: what decides is known, so is what must be found."""

import numpy as np
import pytest

from benchmarks import planted
from hpgr.data.log import EventLog


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
