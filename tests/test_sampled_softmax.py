"""The softmax over negatives of each row's own is torch's cross-entropy over those that count."""

import pytest
import torch
from torch.nn import functional

from hpgr.training import losses
from hpgr.training.losses import sampled_softmax


def one_by_one(states, items, target, negatives):
    """Take the rows one at a time; a negative that is the target is left out."""
    parts = []
    for state, wanted, drawn in zip(states, target, negatives, strict=True):
        chosen = torch.cat([wanted[None], drawn[drawn != wanted]])
        logits = items[chosen] @ state
        parts.append(functional.cross_entropy(logits[None], torch.zeros(1, dtype=torch.int64)))
    return torch.stack(parts).mean()


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    items = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    target = torch.randint(2, 9, (11,), generator=generator)
    # Of 7 items 20 draws hold many twice, and the target among them.
    negatives = torch.randint(2, 9, (11, 20), generator=generator)
    return states.requires_grad_(), items.requires_grad_(), target, negatives


@pytest.mark.parametrize("rows", [1, 4, 512])
def test_loss_and_gradients_are_those_of_cross_entropy(case, rows, monkeypatch):
    monkeypatch.setattr(losses, "ROWS_AT_A_TIME", rows)
    states, items, *ids = case
    expected = one_by_one(states, items, *ids)
    # A factor behind the loss, as other losses beside it are weighed.
    expected_grads = torch.autograd.grad(3 * expected, [states, items])
    found = sampled_softmax(states, items, *ids)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * found, [states, items]), expected_grads)


def test_a_row_with_its_target_alone_among_the_negatives_teaches_nothing(case):
    states, items, target, _ = case
    found = sampled_softmax(states, items, target, target[:, None].expand(-1, 5))
    assert found.item() == 0
    grads = torch.autograd.grad(found, [states, items])
    assert not any(grad.any() for grad in grads)


def test_no_rows_are_no_loss(case):
    states, items, target, negatives = case
    assert sampled_softmax(states[:0], items, target[:0], negatives[:0]).item() == 0
