"""The source of the pCTR loss's candidates: what `finetune.candidates` means for which log."""

from dataclasses import replace

import numpy as np
import pytest
from evaluation_log import random_log
from shown_log import random_lists, write_lists

from hpgr.data.list_log import NO_PLACE
from hpgr.data.log import TRAIN, UNKNOWN
from hpgr.model.list_features import NUM_PLACES
from hpgr.runtime import DamagedFile, UserError
from hpgr.training.candidates import CandidateSource


@pytest.fixture(scope="module")
def log():
    return random_log(3, split="global-time")


@pytest.fixture
def lists(log, tmp_path):
    found = random_lists(log)
    write_lists(found, tmp_path / "lists")
    return found


@pytest.mark.parametrize(
    ("wanted", "has_lists", "chosen"),
    [
        ("auto", True, "impressions"),
        ("auto", False, "events"),
        ("events", True, "events"),
        ("impressions", True, "impressions"),
    ],
)
def test_auto_takes_impressions_where_the_log_has_them(
    log, lists, tmp_path, wanted, has_lists, chosen
):
    folder = tmp_path / ("lists" if has_lists else "none")
    assert CandidateSource.of(wanted, log, folder).name == chosen


def test_lists_too_poor_for_a_ranking_leave_events(log, lists, tmp_path):
    write_lists(replace(lists, can_rank=False), tmp_path / "poor")
    assert CandidateSource.of("auto", log, tmp_path / "poor").name == "events"
    with pytest.raises(UserError, match=r"finetune\.candidates is impressions, but .*one label"):
        CandidateSource.of("impressions", log, tmp_path / "poor")


@pytest.mark.parametrize("events_can", [True, False])
def test_a_ranking_needs_labels_of_its_own_source(log, lists, tmp_path, events_can):
    log = replace(log, meta=replace(log.meta, can_rank=events_can))
    assert CandidateSource.of("auto", log, tmp_path / "lists").can_rank
    assert CandidateSource.of("events", log, tmp_path / "lists").can_rank == events_can


def test_item_counts_are_those_of_training_lists(log, lists, tmp_path):
    events, positive = CandidateSource.of("auto", log, tmp_path / "lists").item_counts()
    expected = np.zeros((2, log.meta.num_items))
    for n in range(len(lists)):
        for row in range(*lists.offsets[n : n + 2]):
            if lists.split[n] == TRAIN:
                expected[:, lists.item[row]] += (1, lists.label[row])
    assert np.array([events, positive]).tolist() == expected.tolist()
    assert events[UNKNOWN] > 0  # one rate for all that are unknown


def test_place_counts_are_those_of_training_lists(log, lists, tmp_path):
    """Places far down count as the last one, and those that are not known do not count."""
    place = np.where(lists.place == 3, 10**6, lists.place)
    place[: lists.offsets[4]] = NO_PLACE
    write_lists(replace(lists, place=place.astype(np.int32)), tmp_path / "far")
    shown, taken = CandidateSource.of("auto", log, tmp_path / "far").place_counts()
    expected = np.zeros((2, NUM_PLACES))
    for n in range(4, len(lists)):
        for row in range(*lists.offsets[n : n + 2]):
            if lists.split[n] == TRAIN:
                last = -1 if lists.place[row] == 3 else lists.place[row]
                expected[:, last] += (1, lists.label[row])
    assert np.array([shown, taken]).tolist() == expected.tolist()
    assert expected[0, -1] > 0


def test_cut_off_arrays_are_named(log, lists, tmp_path):
    np.save(tmp_path / "lists/label.npy", lists.label[:-1])
    with pytest.raises(DamagedFile, match=r"label\.npy .*expected \d+ rows"):
        CandidateSource.of("auto", log, tmp_path / "lists")
