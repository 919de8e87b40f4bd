"""The measures of benchmarks/mechanism.py, on anchors whose worth is known."""

from itertools import pairwise

import numpy as np
import pytest

from benchmarks import mechanism
from hpgr.data.histories import Histories
from hpgr.model.attention.select import Selector
from hpgr.model.scoring import Scorer
from hpgr.workspace import Workspace


class OldestDecides:
    """An item is liked by e^2 to 1 while the oldest event is there, which is its only anchor."""

    def explain(self, histories, offsets, items):
        return np.zeros((len(items), 1), dtype=np.int64), np.ones((len(items), 1))

    def rank(self, histories, offsets, items):
        bounds = pairwise(histories.offsets)
        first = [histories.item[low:high].min(initial=99) for low, high in bounds]
        return 1 / (1 + np.exp(-2.0 * (np.array(first) == 0)))


def test_without_its_anchor_an_item_loses_what_the_anchor_gave_it():
    users, length = 40, 20
    asked = Histories(
        offsets=np.arange(users + 1) * length,
        item=np.tile(np.arange(length), users),
        action=np.ones(users * length, dtype=np.int16),
        timestamp=np.tile(np.arange(length), users),
        session=np.zeros(users * length, dtype=np.int32),
        request_time=np.full(users, length),
    )
    found = mechanism.deletion(OldestDecides(), asked, np.full((users, 20), 7))
    assert found["deletion_anchors"] == pytest.approx(2)
    assert found["deletion_random"] == pytest.approx(
        2 / length, abs=0.06
    )  # now and then the oldest


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


def test_a_workspace_is_measured_and_its_network_chooses_again(registered_project, monkeypatch):
    monkeypatch.setattr(mechanism, "LEAST_EVENTS", 5)
    monkeypatch.setattr(mechanism, "CANDIDATES", 6)
    loaded = []
    load = Scorer.load
    monkeypatch.setattr(Scorer, "load", lambda folder: loaded.append(load(folder)) or loaded[0])
    found = mechanism.measure(Workspace(registered_project), quick=True)
    for name in ("overlap_top", "overlap_random", "overlap_chance", "share_in_newest_32"):
        assert 0 <= found[name] <= 1
    chosen, none = (found[f"validation_ndcg@10, {mode}"] for mode in ("chosen", "none"))
    assert found["ndcg_drop_none_anchors_relative"] == pytest.approx(1 - none / chosen, abs=0.01)
    modes = {m.mode for m in loaded[0].model.modules() if isinstance(m, Selector)}
    assert modes == {"chosen"}
