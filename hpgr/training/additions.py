"""Additions to the cosines of the next item, chosen on validation when training has ended.

First the count of what a user took before, then the votes of the newest events' successors beside
it (`hpgr.model.repeat_counts`, `hpgr.model.successors`). Each kind of request, within a session and
after a pause, has the weight that is best for its validation events. Never opens the test split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from hpgr.data.log import EventLog
from hpgr.model.interface import Network
from hpgr.model.repeat_counts import Repeats
from hpgr.model.successors import Additions, Successors, SuccessorTable
from hpgr.training.cooccurrence import drawn_events
from hpgr.training.validation import Validation

if TYPE_CHECKING:
    from hpgr.config import Finetune

KINDS = ("in a session", "after a pause")


class Chosen(NamedTuple):
    """The additions, and a sentence for each choice."""

    additions: Additions
    sentences: tuple[str, ...]

    @property
    def config(self) -> dict[str, dict[str, float]]:
        """The sections of config.json."""
        repeats, successors = self.additions
        table = successors.table
        return {
            "repeats": {k: v for k, v in repeats._asdict().items() if k != "gap_s"},
            "successors": {
                "weight": successors.weight,
                "weight_after_pause": successors.weight_after_pause,
                "decay": 1.0 if table is None else table.decay,
            },
        }


def choose_additions(
    log: EventLog, settings: Finetune, validation: Validation, model: Network, device: torch.device
) -> Chosen:
    """Choose on validation; of equal choices the first, so that nothing is added for nothing.

    Args:
        log: the sessionized log.
        settings: the choices.
        validation: asks.
        model: the network.
        device: where it computes.
    """
    repeats, first = _repeats(log, settings, validation, model, device)
    successors, second = _successors(log, settings, validation, model, device, repeats)
    return Chosen(Additions(repeats, successors), (*first, *second))


def _repeats(
    log: EventLog, settings: Finetune, validation: Validation, model: Network, device: torch.device
) -> tuple[Repeats, list[str]]:
    gap_s = log.meta.gap_s
    if log.meta.remove_history:
        return Repeats(gap_s=gap_s), []
    choices = [
        (weight * settings.temperature, decay)
        for weight in sorted(settings.repeat_weights)
        for decay in (settings.repeat_decays if weight else (1.0,))
    ]
    ways = [Additions(Repeats(*choice, *choice, gap_s)) for choice in choices]
    pauses = [Additions(Repeats(0.0, 1.0, *choice, gap_s)) for choice in choices]
    kinds = validation.compare(model, device, ways, pauses)
    best = [int(np.argmax(found)) for found in kinds]
    sentences = [
        f"what was taken before, {kind}: weight {choices[b][0] / settings.temperature:g}, decay "
        f"{choices[b][1]:g}; {_gain(found, b)}"
        for kind, found, b in zip(KINDS, kinds, best, strict=True)
    ]
    return Repeats(*choices[best[0]], *choices[best[1]], gap_s), sentences


def _successors(
    log: EventLog,
    settings: Finetune,
    validation: Validation,
    model: Network,
    device: torch.device,
    repeats: Repeats,
) -> tuple[Successors, list[str]]:
    weights = [weight * settings.temperature for weight in sorted(settings.successor_weights)]
    if not any(weights):
        return Successors(gap_s=log.meta.gap_s), []
    user, item = drawn_events(log, seed=settings.seed)
    found = []
    for decay in settings.successor_decays:
        table = SuccessorTable.count(
            user, item, log.meta.num_items, decay=decay, most=settings.successors
        )
        ways = [Additions(repeats, Successors(table, w, w, log.meta.gap_s)) for w in weights]
        found.append((table, validation.compare(model, device, ways, ways)))
    # One table serves both kinds of requests: the one with which their best add up to most.
    table, kinds = max(found, key=lambda one: sum(float(scores.max()) for scores in one[1]))
    best = [int(np.argmax(scores)) for scores in kinds]
    sentences = [
        f"successors, {kind}: weight {weights[b] / settings.temperature:g}, decay {table.decay:g}; "
        f"{_gain(scores, b)}"
        for kind, scores, b in zip(KINDS, kinds, best, strict=True)
    ]
    if not any(best):
        return Successors(gap_s=log.meta.gap_s), sentences
    return Successors(table, weights[best[0]], weights[best[1]], log.meta.gap_s), sentences


def _gain(found: np.ndarray, best: int) -> str:
    return f"NDCG@10 on validation {found[best]:.4f}, without {found[0]:.4f}"
