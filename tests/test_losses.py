"""Losses against torch's cross-entropy: values and gradients."""

import torch
from torch.nn import functional

from hpgr.training.losses import full_softmax, normalised, sampled_softmax


def problem(rows=700, num_items=50, dim=8):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(rows, dim, generator=generator, requires_grad=True)
    items = torch.randn(num_items, dim, generator=generator, requires_grad=True)
    return states, items, torch.randint(2, num_items, (rows,), generator=generator)


def test_full_softmax_equals_torch_without_the_reserved_items():
    states, items, target = problem()
    upstream = torch.tensor(1.7)
    ours = full_softmax(*normalised(states, items, 0.05), target, first_item=2)
    got = torch.autograd.grad(ours, (states, items), upstream)
    unit_states, unit_items = (functional.normalize(x, dim=-1) for x in (states, items))
    logits = unit_states @ unit_items.T / 0.05
    theirs = functional.cross_entropy(logits[:, 2:], target - 2)
    want = torch.autograd.grad(theirs, (states, items), upstream)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-3, atol=1e-6)


def test_sampled_softmax_equals_gathering_every_negative():
    states, items, target = problem(rows=600)
    negatives = torch.randint(2, 50, (600, 7), generator=torch.Generator().manual_seed(1))
    negatives[0, 0] = target[0]  # an accidental hit counts for nothing
    ours = sampled_softmax(states, items, target, negatives)
    chosen = torch.cat([target[:, None], negatives], dim=1)
    logits = torch.einsum("td,trd->tr", states, items[chosen])
    hit = torch.zeros_like(chosen, dtype=torch.bool)
    hit[:, 1:] = negatives == target[:, None]
    logits = logits.masked_fill(hit, -torch.inf)
    theirs = functional.cross_entropy(logits, torch.zeros(600, dtype=torch.long))
    got = torch.autograd.grad(ours, (states, items))
    want = torch.autograd.grad(theirs, (states, items))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-3, atol=1e-6)
