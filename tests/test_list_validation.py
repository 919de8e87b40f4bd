"""AUC and GAUC of shown validation lists against the lists one by one."""

from dataclasses import replace

import numpy as np
import pytest
from evaluation_log import random_log
from shown_log import make_lists, random_lists
from sklearn.metrics import roc_auc_score

from hpgr.data.list_log import NO_PLACE
from hpgr.data.log import VALIDATION
from hpgr.model.scoring import Calibration
from hpgr.training.calibration import fitted
from hpgr.training.list_validation import ListValidation
from hpgr.training.validation import Validation

ALL = {"max_history": 6, "num_items": 10**9, "seed": 0}


class Recorder:
    """Stands for a scorer: scores by what it sees and knows, and keeps the request times."""

    def __init__(self):
        self.times = []

    def rank(self, histories, offsets, candidates, place=None):
        query = np.repeat(np.arange(len(histories)), np.diff(offsets))
        self.times += histories.request_time.tolist()
        seen = np.diff(histories.offsets)[query]
        known = 0 if place is None else place
        return ((candidates * 7 + seen * 3 + known * 4) % 11 / 11).astype(np.float32)


@pytest.fixture(scope="module")
def log():
    return random_log(3, split="global-time")


@pytest.fixture(scope="module")
def lists(log):
    return random_lists(log)


def one_by_one(log, lists, *, placed):
    """Score and label of the shown items of each validation list."""
    for n in range(len(lists)):
        if lists.split[n] == VALIDATION:
            start = log.user_offsets[lists.user[n]]
            seen = min(6, int((log.timestamp[start : lists.end[n]] < lists.timestamp[n]).sum()))
            shown = slice(*lists.offsets[n : n + 2])
            known = np.arange(lists.size[n]) if placed else 0
            yield (lists.item[shown] * 7 + seen * 3 + known * 4) % 11 / 11, lists.label[shown]


def test_scores_are_auc_over_all_items_and_inside_each_list(log, lists):
    found = ListValidation(log, lists, **ALL)(Recorder())
    expected = {}
    for suffix, placed in (("", False), ("_placed", True)):
        scored = list(one_by_one(log, lists, placed=placed))
        both = [(s, y) for s, y in scored if 0 < y.sum() < len(y)]
        areas, sizes = zip(*((roc_auc_score(y, s), len(y)) for s, y in both), strict=True)
        score, label = (np.concatenate(part) for part in zip(*scored, strict=True))
        assert len(both) < len(scored)
        expected[f"validation_auc{suffix}"] = roc_auc_score(label, score)
        expected[f"validation_gauc{suffix}"] = np.average(areas, weights=sizes)
    gauc = [expected[f"validation_gauc{suffix}"] for suffix in ("", "_placed")]
    assert gauc[0] != gauc[1]
    assert found == pytest.approx({**expected, "validation_ranking": np.mean(gauc)})


def test_lists_whose_places_are_not_known_are_judged_without_them(log, lists):
    unknown = replace(lists, place=np.full_like(lists.place, NO_PLACE))
    found = ListValidation(log, unknown, **ALL)(Recorder())
    assert list(found) == ["validation_auc", "validation_gauc", "validation_ranking"]
    assert found["validation_ranking"] == found["validation_gauc"]


def test_lists_ask_at_their_own_time(log, lists):
    scorer = Recorder()
    ListValidation(log, lists, **ALL)(scorer)
    assert scorer.times == 2 * lists.timestamp[lists.of(VALIDATION)].tolist()


def test_whole_lists_are_drawn_until_there_are_enough_items(log, lists):
    everything = ListValidation(log, lists, **ALL)
    most = len(everything.label) // 2
    some = ListValidation(log, lists, **{**ALL, "num_items": most})
    assert most <= len(some.label) < most + lists.size.max() + 1 < len(everything.label)
    assert set(some.drawn) < set(lists.of(VALIDATION))


def test_lists_of_one_label_alone_tell_nothing(log):
    poor = make_lists([(0, 10**9, 0, VALIDATION, [(2, 0), (3, 0)])])
    assert set(ListValidation(log, poor, **ALL)(Recorder()).values()) == {0.5}


def test_the_calibration_is_fitted_to_the_lists(log, lists, monkeypatch):
    validation = Validation(
        log, max_history=6, num_queries=5, num_labelled=10**9, seed=0, lists=lists
    )
    monkeypatch.setattr("hpgr.training.validation.Scorer", lambda *_: Recorder())
    scored = one_by_one(log, lists, placed=False)
    score, label = (np.concatenate(part) for part in zip(*scored, strict=True))
    found = validation.calibration(None, None)
    assert found == pytest.approx(fitted(score.astype(np.float32), label), abs=1e-5)
    assert found != Calibration()
