"""Losses: softmax over the catalogue, full or sampled, and the order of pairs.

The softmax never holds all logits at once. Its gradient is computed in the forward pass, chunk by
chunk of rows, while the logits are still in the cache: three matrix products, no T x V matrix. All
of it is float32 under autocast too: logits reach 20, where bfloat16 has steps of an eighth.

Shape legend: T rows, V items, D width, R negatives, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpgr.model.placement import at_a_time
from hpgr.model.precision import autocast_off, wide
from hpgr.model.unit import unit

ROWS_AT_A_TIME, BYTES_AT_A_TIME = 512, 1 << 28  # logits on a CPU, at most


class _GradientInForward(torch.autograd.Function):
    """Mean loss of rows against a table, of which subclasses sum the gradients in `forward`."""

    @staticmethod
    def keep(ctx, states, items, loss, grad_states, grad_items):  # type: ignore[no-untyped-def]
        count = max(1, len(states))
        ctx.save_for_backward(grad_states.div_(count), grad_items.div_(count))
        ctx.dtypes = states.dtype, items.dtype
        return loss / count

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        grad_states, grad_items = ctx.saved_tensors
        both = (grad_states * grad).to(ctx.dtypes[0]), (grad_items * grad).to(ctx.dtypes[1])
        return *both, *[None] * (len(ctx.needs_input_grad) - 2)


class _CosineSoftmax(_GradientInForward):
    @staticmethod
    def forward(ctx, states, items, target):  # type: ignore[override]
        rows_all, table = wide(states), wide(items)
        loss = rows_all.new_zeros(())
        grad_states, grad_items = torch.empty_like(rows_all), torch.zeros_like(table)
        for part, memory in _chunks(rows_all, table):
            rows, wanted = rows_all[part], table[target[part]]
            weight = torch.mm(rows, table.T, out=memory).exp_()
            total = weight.sum(dim=1, keepdim=True)
            loss += (total.log().squeeze(1) - (rows * wanted).sum(1)).sum()
            # The softmax is never divided out: its denominator moves to the D-wide factors.
            grad_states[part] = (weight @ table) / total - wanted
            grad_items.addmm_(weight.T, rows / total)
        grad_items.index_add_(0, target, rows_all, alpha=-1)
        return _CosineSoftmax.keep(ctx, states, items, loss, grad_states, grad_items)


class _SampledSoftmax(_GradientInForward):
    @staticmethod
    def forward(ctx, states, items, target, negatives):  # type: ignore[override]
        rows_all, table = wide(states), wide(items)
        loss = rows_all.new_zeros(())
        grad_states, grad_items = torch.empty_like(rows_all), torch.zeros_like(table)
        for part, memory in _chunks(rows_all, table):
            rows, wanted = rows_all[part], target[part, None]
            chosen = torch.cat([wanted, negatives[part]], 1)
            score = torch.mm(rows, table.T, out=memory).gather(1, chosen)
            score[:, 1:].masked_fill_(chosen[:, 1:] == wanted, -torch.inf)
            weight = score.log_softmax(1)
            loss -= weight[:, 0].sum()
            weight.exp_()[:, 0] -= 1
            # An item that was drawn twice counts twice.
            weight_all = memory.zero_().scatter_add_(1, chosen, weight)
            torch.mm(weight_all, table, out=grad_states[part])
            grad_items.addmm_(weight_all.T, rows)
        return _SampledSoftmax.keep(ctx, states, items, loss, grad_states, grad_items)


def _chunks(states: Tensor, items: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Give the rows of each chunk, and memory for their logits, which all chunks share."""
    step = max(1, min(_at_a_time(items), len(states)))
    memory = items.new_empty(step, len(items))  # fresh pages cost more than a product
    for low in range(0, len(states), step):
        part = slice(low, min(low + step, len(states)))
        yield part, memory[: part.stop - low]


def full_softmax(states: Tensor, items: Tensor, target: Tensor, *, first_item: int) -> Tensor:
    """Compute the mean cross-entropy of `target` under softmax(states @ items.T).

    Args:
        states: [T, D], rows of length at most 80: scores are exponentiated without subtracting a
            maximum, which `normalised` makes safe.
        items: [V, D], rows of length at most 1.
        target: item ids, int64 [T].
        first_item: items below this id (padding, unknown) are never predicted.
    """
    with autocast_off(states):
        return _CosineSoftmax.apply(states, items[first_item:], target - first_item)


def takes_shared(settings: Any, num_items: int) -> bool:
    """Return True if the loss over a catalogue of this size draws negatives that rows share.

    Args:
        settings: of section `finetune`: `loss` and `full_items`.
        num_items: of the catalogue.
    """
    if settings.loss == "auto":
        return bool(num_items > settings.full_items)
    return bool(settings.loss == "shared")


def describe_loss(settings: Any, num_items: int) -> str:
    """Name the loss over a catalogue of this size, and the reason; arguments as `takes_shared`."""
    if settings.loss == "sampled":
        return "softmax over negatives of each row's own (finetune.loss: sampled)"
    name = "softmax over shared negatives" if takes_shared(settings, num_items) else "full softmax"
    why = settings.loss
    if why == "auto":
        why = f"auto, full for up to {settings.full_items:,} items"
    return f"{name} over {num_items:,} items (finetune.loss: {why})"


def catalogue_softmax(
    settings: Any, states: Tensor, items: Tensor, target: Tensor, *, first_item: int
) -> Tensor:
    """Compute `shared_softmax` where the settings ask for it, else `full_softmax`."""
    if not takes_shared(settings, len(items)):
        return full_softmax(states, items, target, first_item=first_item)
    drawn = draw_shared(
        target, settings.shared_negatives, first_item=first_item, num_items=len(items)
    )
    return shared_softmax(states, items, target, *drawn)


def shared_softmax(
    states: Tensor, items: Tensor, target: Tensor, drawn: Tensor, expected: Tensor
) -> Tensor:
    """Compute the mean cross-entropy of `target` against negatives that all rows share.

    Each negative stands for 1 / `expected` items, so that the sum over negatives is an unbiased
    estimate of the sum over the catalogue, and a negative equal to the target is left out. Source:
    the logQ correction of Bengio and Senécal, "Adaptive importance sampling to accelerate training
    of a neural probabilistic language model", IEEE TNN 19(4), 2008; for recommenders Yi et al.,
    "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019.

    Args:
        states: [T, D].
        items: [V, D].
        target: int64 [T].
        drawn: item ids, int64 [R], as `draw_shared` draws them.
        expected: how often each of `drawn` is expected among R, float [R].
    """
    with autocast_off(states):
        states, items = wide(states), wide(items)
        positive = (states * items[target]).sum(1, keepdim=True)
        negative = states @ items[drawn].T - expected.log()
        negative = negative.masked_fill(drawn == target[:, None], -torch.inf)
        chosen = torch.cat([positive, negative], 1)
        return (chosen.logsumexp(1) - positive.squeeze(1)).mean()


def draw_shared(
    target: Tensor, num_drawn: int, *, first_item: int, num_items: int
) -> tuple[Tensor, Tensor]:
    """Draw items that all rows share, half evenly from the catalogue, half from the targets.

    Args:
        target: of the batch, int64 [T], T at least 1.
        num_drawn: R.
        first_item: smallest item id that is drawn.
        num_items: of the catalogue, with the ids below `first_item`.

    Returns:
        Item ids int64 [R], and how often each is expected among them, float32 [R].
    """
    even = num_drawn - num_drawn // 2
    anywhere = torch.randint(first_item, num_items, (even,), device=target.device)
    place = torch.randint(len(target), (num_drawn - even,), device=target.device)
    drawn, known = torch.cat([anywhere, target[place]]), target.sort().values
    count = torch.searchsorted(known, drawn, right=True) - torch.searchsorted(known, drawn)
    share = even / (num_items - first_item)
    return drawn, share + count * ((num_drawn - even) / len(target))


def sampled_softmax(states: Tensor, items: Tensor, target: Tensor, negatives: Tensor) -> Tensor:
    """Compute the mean cross-entropy of `target` against its negatives, as HSTU's research code.

    A negative equal to the target is left out. Scores against the whole catalogue are one product
    for a chunk of rows, of which R are picked: on small catalogues much cheaper than gathering
    R vectors a row.

    Args:
        states: [T, D].
        items: [V, D].
        target: int64 [T].
        negatives: int64 [T, R].
    """
    with autocast_off(states):
        return _SampledSoftmax.apply(states, items, target, negatives)


def pairwise(logits: Tensor, label: Tensor, offsets: Tensor) -> Tensor:
    """Compute the mean logistic loss of pairs of a window or list that differ in their label.

    One partner is drawn for each candidate. Source: Burges et al., "Learning to Rank using Gradient
    Descent" (RankNet), ICML 2005.

    Args:
        logits: [C].
        label: 0 or 1, [C].
        offsets: candidates of window or list b are offsets[b]:offsets[b + 1], int64 [B + 1].
    """
    count = offsets.diff()
    count_C = count.repeat_interleave(count)
    drawn = (torch.rand(len(logits), device=logits.device) * count_C).long()
    partner = offsets[:-1].repeat_interleave(count) + torch.minimum(drawn, count_C - 1)
    differs = label != label[partner]
    margin = (logits - logits[partner]) * (label - label[partner])
    return (functional.softplus(-margin) * differs).sum() / differs.sum().clamp_min(1)


def _at_a_time(items: Tensor) -> int:
    """Rows whose logits over `items` are held together."""
    each = 4 * len(items)
    few = max(1, min(ROWS_AT_A_TIME, BYTES_AT_A_TIME // max(1, each)))
    return at_a_time(items.device, cpu=few, bytes_each=each)


def logits_bytes(num_items: int, device: torch.device) -> int:
    """Return the bytes of the logits that a softmax over the catalogue holds at a time, at most."""
    table = torch.empty(num_items, 0, device=device)
    return 4 * num_items * _at_a_time(table)


def normalised(states: Tensor, items: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return L2-normalised states divided by the temperature, and L2-normalised items."""
    with autocast_off(states):
        return (
            unit(wide(states)) / temperature,
            unit(wide(items)),
        )
