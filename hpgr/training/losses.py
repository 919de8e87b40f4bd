"""Losses: softmax over the catalogue, full or sampled, never holding all logits at once.

The gradient is computed in the forward pass, chunk by chunk of rows, while the logits are still in
the cache: three matrix products, no T x V matrix.

Shape legend: T rows, V items, D width, R negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ROWS_AT_A_TIME = 1024


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, items, target, first_item):  # type: ignore[override]
        wide = items.float()
        loss = torch.zeros((), device=states.device)
        grad_states = torch.empty_like(states, dtype=torch.float32)
        grad_items = torch.zeros_like(wide)
        for low in range(0, len(states), ROWS_AT_A_TIME):
            part = slice(low, low + ROWS_AT_A_TIME)
            rows, wanted = states[part].float(), target[part, None]
            logits = rows @ wide.T
            logits[:, :first_item] = -torch.inf
            norm = logits.logsumexp(dim=1, keepdim=True)
            loss += (norm - logits.gather(1, wanted)).sum()
            probability = logits.sub_(norm).exp_()
            probability.scatter_add_(1, wanted, probability.new_full(wanted.shape, -1.0))
            grad_states[part] = probability @ wide
            grad_items.addmm_(probability.T, rows)
        count = max(1, len(states))
        ctx.save_for_backward(grad_states.div_(count), grad_items.div_(count))
        ctx.dtypes = states.dtype, items.dtype
        return loss / count

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        grad_states, grad_items = ctx.saved_tensors
        return (
            (grad_states * grad).to(ctx.dtypes[0]),
            (grad_items * grad).to(ctx.dtypes[1]),
            None,
            None,
        )


def full_softmax(states: Tensor, items: Tensor, target: Tensor, *, first_item: int) -> Tensor:
    """Mean cross-entropy of `target` under softmax(states @ items.T) over the catalogue.

    Args:
        states: [T, D].
        items: [V, D].
        target: item ids, int64 [T].
        first_item: items below this id (padding, unknown) are never predicted.
    """
    return _FullSoftmax.apply(states, items, target, first_item)


def sampled_softmax(states: Tensor, items: Tensor, target: Tensor, negatives: Tensor) -> Tensor:
    """Mean cross-entropy of `target` against its own negatives, as in HSTU's research code.

    A negative equal to the target is masked. Scores against the whole catalogue are one product
    for a chunk of rows, of which R are picked: on small catalogues much cheaper than gathering
    R vectors a row.

    Args:
        states: [T, D].
        items: [V, D].
        target: int64 [T].
        negatives: int64 [T, R].
    """
    total = states.new_zeros(())
    for low in range(0, len(states), ROWS_AT_A_TIME):
        part = slice(low, low + ROWS_AT_A_TIME)
        logits = states[part] @ items.T
        positive = logits.gather(1, target[part, None])
        negative = logits.gather(1, negatives[part])
        negative = negative.masked_fill(negatives[part] == target[part, None], -5e4)
        total = total - functional.log_softmax(torch.cat([positive, negative], 1), 1)[:, 0].sum()
    return total / max(1, len(states))


def normalised(states: Tensor, items: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """L2-normalised states divided by the temperature, and L2-normalised items."""
    return (
        functional.normalize(states, dim=-1) / temperature,
        functional.normalize(items, dim=-1),
    )
