"""Length of a training: planned steps, patience, a wall-time budget, and the learning rate.

The plan is fixed once: the steps of params.yaml or, under a budget, as many as the speed of the
first steps allows. So the learning rate decays over the steps that are run, and a resumed run keeps
the plan of its checkpoint. Reads and writes nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import distributed

from hpgr.training.device import Device

SLOW_STEPS = 5  # the first steps allocate and load; they say nothing about speed
TIMED_STEPS = 20
# Validation reads no more than an epoch does, and only forward: every fourth epoch it is cheap.
CHEAP_EPOCHS, CHEAP_STEPS = 4, 20


@dataclass(frozen=True)
class Schedule:
    """Steps and rates of a training; params.yaml explains each key."""

    steps: int
    validate_steps: int
    patience: int | None
    max_minutes: float | None
    warmup_steps: int
    decay: bool
    clip_norm: float
    checkpoint_steps: int
    monitor: str

    @classmethod
    def of(cls, settings: Any, **own: Any) -> Schedule:
        """Take from a stage's section what the stage itself does not set by `own`."""
        names = {field.name for field in fields(cls)} - own.keys()
        return cls(**{name: getattr(settings, name) for name in names}, **own)


class Speed:
    """Times the first steps of a run with a budget and computes how many steps fit it."""

    def __init__(self, schedule: Schedule, every: int, device: Device) -> None:
        """`every`: steps between two validations."""
        self.schedule, self.every, self.device = schedule, every, device
        self.clock, self.step_s = 0.0, 0.0

    def pause(self, seconds: float) -> None:
        """Leave out the `seconds` of a validation among the timed steps."""
        self.clock += seconds if self.clock else 0.0

    def known(self, step: int) -> bool:
        """Return True if the plan is to be fixed after `step` steps; call it after every step."""
        if self.schedule.max_minutes is None:
            return False
        if step == SLOW_STEPS:
            self.clock = time.perf_counter()
        return step == SLOW_STEPS + TIMED_STEPS

    def plan(self, step: int, spent_s: float, validate: Callable[[], Any]) -> int:
        """Return the number of steps in all, the same in every process.

        Args:
            step: steps done so far.
            spent_s: seconds since the start of the run.
            validate: one validation; it is timed, its scores do not count.
        """
        now = time.perf_counter()
        # Resumed among the timed steps: only the slow first steps were measured.
        self.step_s = (now - self.clock) / TIMED_STEPS if self.clock else spent_s / step
        validate()
        validation_s = time.perf_counter() - now
        budget_s = 60 * float(self.schedule.max_minutes or math.inf)
        each_s = self.step_s + validation_s / self.every
        left = int(max(0.0, budget_s - spent_s - 2 * validation_s) / each_s)
        planned = min(self.schedule.steps, step + left)
        if self.device.world > 1:
            agreed = torch.tensor(planned, device=self.device.device)
            distributed.broadcast(agreed, src=0)
            planned = int(agreed)
        return planned

    def describe(self, planned: int, section: str) -> str:
        """Describe a plan that the budget cut short."""
        return (
            f"{planned:,} of {self.schedule.steps:,} steps fit {section}.max_minutes: "
            f"{self.schedule.max_minutes:g} at {self.step_s:.2f} s a step; "
            "the rate decays over these"
        )


def learning_rate_scale(step: int, *, warmup: int, total: int, decay: bool) -> float:
    """Scale the rate: linear warm-up, then constant or a cosine down to a tenth.

    A tenth keeps late steps useful. The warm-up takes at most a quarter of the training, so that a
    short one reaches its peak.
    """
    warmup = min(warmup, total // 4)
    if step < warmup:
        return (step + 1) / warmup
    if not decay:
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


def validation_interval(schedule: Schedule, batches_per_epoch: int) -> int:
    """Return the steps between two validations: those of params.yaml, fewer on a small log.

    On a small log the best weights may come early, and a validation costs little.
    """
    cheap = max(CHEAP_STEPS, CHEAP_EPOCHS * batches_per_epoch)
    return min(schedule.validate_steps, cheap)


def is_due(state: dict[str, Any], every: int) -> bool:
    """Return True if the weights of this step are to be validated and were not yet."""
    step = state["step"]
    if not step or (state["curves"] and state["curves"][-1]["step"] == step):
        return False
    return step % every == 0 or step == state["planned"]


def is_best(curves: list[dict[str, float]], monitor: str) -> bool:
    """Return True if the newest row's monitored score is the best so far; a loss is best low."""
    sign = -1 if monitor.endswith("loss") else 1
    scores = [sign * row[monitor] for row in curves]
    return len(scores) == 1 or scores[-1] > max(scores[:-1])


def exhausted(state: dict[str, Any], schedule: Schedule) -> bool:
    """Return True if `patience` times `validate_steps` steps brought nothing better."""
    if schedule.patience is None or state["best"] < 0:
        return False
    waited = state["curves"][-1]["step"] - state["curves"][state["best"]]["step"]
    return waited >= schedule.patience * schedule.validate_steps
