"""Items of next sessions as training targets: where they are asked for, and which may be drawn."""

import csv
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from evaluation_log import random_log
from training_runs import parameters, train_both, write_project

from hpgr.data.batches import BASKET_ITEMS, TrainingWindows
from hpgr.data.log import FIRST_ITEM, TRAIN
from hpgr.metrics import BASKET_MONITOR


@pytest.fixture(scope="module")
def log():
    """A log in which an item names its row."""
    log = random_log(3, split="global-time")
    return replace(log, item=np.arange(len(log.item)) + FIRST_ITEM)


def expected(log):
    """By row of the log that is asked there, the rows of the training session behind it."""
    found, user = {}, log.user_of_event()
    for row in range(len(log.item) - 1):
        first = row + 1
        if user[first] != user[row] or log.split[first] != TRAIN:
            continue
        if log.session[first] == log.session[row] or log.timestamp[first] == log.timestamp[row]:
            continue
        session = []
        for later in range(first, len(log.item)):
            if user[later] != user[row] or log.split[later] != TRAIN:
                break
            if log.session[later] != log.session[first]:
                break
            session.append(later)
        found[row] = session
    return found


@pytest.mark.parametrize("random_windows", [False, True])
def test_every_end_of_a_session_asks_for_items_of_the_next_one_alone(log, random_windows):
    data = TrainingWindows(
        log, max_history=6, batch_tokens=64, num_candidates=4, random_windows=random_windows,
        seed=0, baskets=True,
    )  # fmt: skip
    truth, drawn = expected(log), defaultdict(set)
    for epoch in range(20):
        for index, numbers in enumerate(data.plan(epoch)):
            batch = data.batch(numbers, epoch, index)
            row = batch.histories.item - FIRST_ITEM
            asked = batch.next_sessions
            assert asked.item.shape == (len(asked.row), BASKET_ITEMS)
            assert row[asked.row].tolist() == [r for r in row.tolist() if r in truth]
            for place, items in zip(row[asked.row].tolist(), asked.item, strict=True):
                drawn[place] |= set((items - FIRST_ITEM).tolist())
    assert max(map(len, truth.values())) > 1
    assert all(rows <= set(truth[place]) for place, rows in drawn.items())
    if not random_windows:  # each place is drawn for in each epoch: 160 draws miss none of a few
        few = [place for place in drawn if len(truth[place]) < 5]
        assert few and all(drawn[place] == set(truth[place]) for place in few)


def test_other_draws_of_a_batch_are_as_without_them(log):
    shape = {"max_history": 6, "batch_tokens": 64, "num_candidates": 4, "random_windows": True}
    with_them, without = (TrainingWindows(log, **shape, seed=0, baskets=b) for b in (True, False))
    for index, numbers in enumerate(without.plan(1)):
        one, other = (data.batch(numbers, 1, index) for data in (with_them, without))
        assert other.next_sessions is None
        np.testing.assert_array_equal(one.target, other.target)
        np.testing.assert_array_equal(one.candidates.item, other.candidates.item)


def test_their_loss_counts_by_its_weight(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path)
    changes = {"basket_weight": 0.5, "ranking_weight": 0.0, "monitor": BASKET_MONITOR}
    train_both(parameters(**{f"finetune__{name}": value for name, value in changes.items()}))
    with (tmp_path / "artifacts/finetune/curves.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        parts = float(row["retrieval_loss"]) + 0.5 * float(row["basket_loss"])
        assert float(row["loss"]) == pytest.approx(parts, rel=1e-3)
        assert float(row["basket_loss"]) > 0
