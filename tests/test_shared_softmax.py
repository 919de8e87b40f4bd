"""Softmax with negatives that all rows share, against the softmax over the catalogue."""

import math
from types import SimpleNamespace

import pytest
import torch
from training_runs import both, parameters, train_both, write_project

from hpgr.training.losses import (
    catalogue_softmax,
    draw_shared,
    full_softmax,
    normalised,
    shared_softmax,
)

FIRST, ITEMS, ROWS = 2, 40, 6


@pytest.fixture
def case():
    """States, items and targets; one target comes three times."""
    random = torch.Generator().manual_seed(0)
    states, items = (torch.randn(n, 5, generator=random) for n in (ROWS, ITEMS))
    target = torch.tensor([7, 7, 9, 2, 7, 39])
    return *normalised(states, items, 0.5), target


def test_with_every_item_drawn_once_it_is_the_full_softmax(case):
    states, items, target = (x.requires_grad_() if x.is_floating_point() else x for x in case)
    every = torch.arange(FIRST, ITEMS)
    gradients = []
    for loss in (
        shared_softmax(states, items, target, every, torch.ones(len(every))),
        full_softmax(states, items, target, first_item=FIRST),
    ):
        gradients.append((loss, *torch.autograd.grad(loss, (states, items))))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_the_estimate_of_the_denominator_is_unbiased(case):
    """Of every row: the mean over many draws, within four of its standard errors."""
    states, items, target = case
    torch.manual_seed(1)
    draws, found = 4000, []
    for _ in range(draws):
        drawn = draw_shared(target, 8, first_item=FIRST, num_items=ITEMS)
        rows = [shared_softmax(states[r, None], items, target[r, None], *drawn) for r in (0, 3)]
        found.append(torch.stack(rows).exp())  # denominator / exp(score of the target)
    found = torch.stack(found).double()
    logits = (states @ items[FIRST:].T).double()
    exact = (logits.logsumexp(1) - logits.gather(1, target[:, None] - FIRST)[:, 0]).exp()[[0, 3]]
    error = found.std(0) / draws**0.5
    assert (error < 0.05 * exact).all()
    assert ((found.mean(0) - exact).abs() < 4 * error).all()


def test_items_are_drawn_as_often_as_expected(case):
    *_, target = case
    torch.manual_seed(2)
    drawn, expected = draw_shared(target, 200_000, first_item=FIRST, num_items=ITEMS)
    assert drawn.min() == FIRST and drawn.max() == ITEMS - 1
    count = torch.bincount(drawn, minlength=ITEMS)
    torch.testing.assert_close(count[drawn].float(), expected, rtol=0.06, atol=0)


@pytest.mark.parametrize(
    ("asked", "full_items", "shared"),
    [("auto", ITEMS, False), ("auto", ITEMS - 1, True), ("full", 1, False), ("shared", 99, True)],
)
def test_the_size_of_the_catalogue_chooses_where_nothing_else_does(case, asked, full_items, shared):
    states, items, target = case
    settings = SimpleNamespace(loss=asked, full_items=full_items, shared_negatives=8)
    torch.manual_seed(3)
    found = catalogue_softmax(settings, *case, first_item=FIRST)
    torch.manual_seed(3)
    drawn = draw_shared(target, 8, first_item=FIRST, num_items=ITEMS)
    expected = {
        True: shared_softmax(states, items, target, *drawn),
        False: full_softmax(states, items, target, first_item=FIRST),
    }
    assert found == expected[shared] != expected[not shared]


def test_both_stages_train_with_shared_negatives(tmp_path, monkeypatch, capsys):
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    rows = {
        full_items: train_both(
            parameters(
                **both(2, "steps"), finetune__full_items=full_items, finetune__shared_negatives=9
            )
        )
        for full_items in (5, 500)
    }
    for stage, key in (("pretrain", "loss"), ("finetune", "retrieval_loss")):
        assert math.isfinite(rows[5][stage][key]) and rows[5][stage][key] != rows[500][stage][key]
    printed = capsys.readouterr().out
    assert "softmax over shared negatives over" in printed and "full softmax over" in printed
