"""Trees of shown lists: what they find where it is planted, and what may not reach a feature."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from test_evaluate import CONFIG
from test_shown_lists import planted

from hpgr.data.log import FIRST_ITEM, TRAIN, UNKNOWN, VALIDATION
from hpgr.evaluation.list_trees import ItemRates, tree_scores
from hpgr.evaluation.shown_queries import ShownLists
from hpgr.metrics import gauc

SETTINGS = CONFIG.evaluate.model_copy(update={"tree_rounds": 40})


def split(table, parts):
    """The lists of `table` with its list n in part n % parts."""
    number = table["impression"].to_numpy() % parts
    place = table.column_names.index("split")
    dealt = table.set_column(place, "split", pa.array(number, "i1"))
    return [ShownLists.of(dealt, part) for part in range(parts)]


@pytest.fixture(scope="module")
def planted_lists():
    """A log, and lists in which every third one is answered by its first item."""
    log, table = planted(num_users=400)
    first = (table["impression"].to_numpy() % 7 < 2) & (table["position"].to_numpy() == 0)
    other = table["impression"].to_numpy() % 7 < 2
    label = np.where(other, first, table["label"].to_numpy()).astype(np.int8)
    at = table.column_names.index("label")
    return log, table.set_column(at, "label", pa.array(label))


def test_trees_find_the_place_only_where_they_know_it(planted_lists):
    log, table = planted_lists
    train, validation, test = split(table, 3)
    found = tree_scores(log, test, {TRAIN: train, VALIDATION: validation}, SETTINGS)
    query = np.repeat(np.arange(len(test)), np.diff(test.offsets))
    blind, placed = (gauc(query, test.label, score) for score in found.values())
    assert list(found) == ["boosted_trees", "boosted_trees_with_position"]
    assert placed > 0.6 and abs(blind - 0.5) < 0.1 and placed - blind > 0.05


def test_one_label_or_unknown_positions_leave_them_out(planted_lists):
    log, table = planted_lists
    train, validation, test = split(table, 3)
    parts = {TRAIN: train, VALIDATION: validation}
    blind = replace(test, position=np.full(len(test.item), np.nan))
    assert list(tree_scores(log, blind, parts, SETTINGS)) == ["boosted_trees"]
    parts[TRAIN] = replace(train, label=np.zeros_like(train.label))
    assert tree_scores(log, test, parts, SETTINGS) == {}


def test_a_training_list_s_own_labels_reach_none_of_its_features(planted_lists):
    log, table = planted_lists
    train = split(table, 3)[TRAIN]
    own = slice(*train.offsets[:2])
    label = train.label.copy()
    label[own] = np.roll(label[own], 1)
    assert (label != train.label).sum() == 2
    tables = [
        ItemRates(one, prior_events=5.0).table(log, train, own=True)
        for one in (train, replace(train, label=label))
    ]
    np.testing.assert_array_equal(tables[0][own], tables[1][own])
    assert (tables[0] != tables[1]).any()  # of other users


def test_nothing_from_a_list_s_second_on_reaches_its_features(planted_lists):
    log, table = planted_lists
    train, _, test = split(table, 3)
    rates = ItemRates(train, prior_events=5.0)
    before = rates.table(log, test, own=False)
    late = np.ones(log.meta.num_events, dtype=bool)
    for user, end in zip(test.user, test.end, strict=True):
        late[log.user_offsets[user] : end] = False
    changed = replace(
        log,
        item=np.where(late, FIRST_ITEM, log.item).astype(np.int32),
        timestamp=log.timestamp + 100 * late,
    )
    np.testing.assert_array_equal(rates.table(changed, test, own=False), before)


def test_features_say_what_was_met_and_when():
    log, table = planted(num_users=1)
    (lists,) = split(table, 1)
    newest, first = int(log.item[1]), int(log.item[0])
    item = np.array([newest, UNKNOWN, first, newest + 1, *lists.item[4:]])
    found = ItemRates(lists, prior_events=5.0).table(log, replace(lists, item=item), own=True)
    known, times, age, since, order, last = found[:, 2:8].T
    assert known[:3].tolist() == [1, 0, 1] and times[:3].tolist() == [1, 0, 1]
    assert age[[0, 2]].tolist() == [1, 2] and np.isnan(age[1])
    assert since[[0, 2]].tolist() == [993, 995]
    assert order[[0, 2]].tolist() == [0, 1] and last[:3].tolist() == [1, 0, 0]
