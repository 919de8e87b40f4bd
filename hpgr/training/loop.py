"""The training loop of both stages: one engine, resumable in mid-epoch, stopped with grace.

Batches are a pure function of (seed, epoch, index), so the position in the data is two integers.
SIGTERM and SIGINT end the run after the current step with a checkpoint; the same command goes on.
Writes: a scratch folder with the checkpoint and the best weights; returns the curves.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from tqdm import tqdm

from hpgr.data.batches import Batch, TrainingWindows
from hpgr.runtime import UserError
from hpgr.training.checkpoint import (
    BEST,
    load_checkpoint,
    load_tensors,
    pack_state,
    save_atomic,
    save_checkpoint,
    unpack_state,
)
from hpgr.training.device import Device


class Stopped(SystemExit):
    """The run was asked to stop and left a checkpoint; exit code 143, as after SIGTERM."""

    def __init__(self) -> None:
        super().__init__(143)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; see the sections of params.yaml for the meaning."""

    epochs: int
    patience: int | None
    warmup_steps: int
    decay: bool
    clip_norm: float
    checkpoint_steps: int
    monitor: str


@dataclass(frozen=True)
class Outcome:
    """Curves (one row an epoch), the best epoch and how fast it went."""

    curves: list[dict[str, float]]
    best_epoch: int
    best_weights: dict[str, Tensor]
    train_seconds: float
    events_per_second: float


def learning_rate_scale(step: int, *, warmup: int, total: int, decay: bool) -> float:
    """Linear warm-up, then constant or a cosine down to a tenth, which keeps late epochs useful."""
    if step < warmup:
        return (step + 1) / warmup
    if not decay:
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    windows: TrainingWindows,
    *,
    loss: Callable[[nn.Module, Batch, int, int], dict[str, Tensor]],
    validate: Callable[[nn.Module], dict[str, float]],
    device: Device,
    schedule: Schedule,
    scratch: Path,
    name: str,
) -> Outcome:
    """Train `model` and return the weights of the epoch with the best monitored score.

    Args:
        model: on its device already, not wrapped.
        optimizer: over its parameters; each group's `lr` is the peak rate.
        windows: the training data.
        loss: (model, batch, epoch, index) -> named losses; `loss` is the one to minimise.
        validate: model -> named scores, after every epoch; every process computes the same, so all
            agree on when to stop.
        device: where and in which precision.
        schedule: epochs, patience, rates.
        scratch: folder of checkpoint and best weights; emptied by the caller when all is written.
        name: shown on the progress bar.

    Raises:
        Stopped: after SIGTERM or SIGINT, with a checkpoint.
        UserError: the loss is not finite.
    """
    wrapped = device.wrap(model)
    peak_rates = [group["lr"] for group in optimizer.param_groups]
    best_file = scratch / BEST
    state: dict[str, Any] = {
        "epoch": 0, "index": 0, "step": 0, "curves": [], "best_epoch": -1,
        "sums": {}, "seconds": 0.0, "events": 0,
    }  # fmt: skip
    tensors, saved = load_checkpoint(scratch, tells=device.rank == 0)
    if saved:
        state = saved
        unpack_state(tensors, model, optimizer)
        print(f"{name}: goes on at epoch {state['epoch'] + 1}, batch {state['index']}", flush=True)
    stop = _StopFlag()
    total_steps = schedule.epochs * windows.batches_per_epoch // device.world
    started, seconds_before = time.perf_counter(), state["seconds"]

    def save() -> None:
        state["seconds"] = seconds_before + time.perf_counter() - started
        if device.rank == 0:
            save_checkpoint(scratch, pack_state(model, optimizer), state)
        if device.world > 1:
            distributed.barrier()

    with stop:
        while state["epoch"] < schedule.epochs and not _exhausted(state, schedule):
            epoch = state["epoch"]
            plan = windows.plan(epoch)
            plan = plan[: len(plan) // device.world * device.world]
            mine = plan[device.rank :: device.world]
            wrapped.train()
            bar = tqdm(
                range(state["index"], len(mine)), initial=state["index"], total=len(mine),
                desc=f"{name} {epoch + 1}/{schedule.epochs}", unit="step", mininterval=5,
                disable=device.rank > 0,
            )  # fmt: skip
            for index in bar:
                batch = windows.batch(mine[index], epoch, index * device.world + device.rank)
                scale = learning_rate_scale(
                    state["step"],
                    warmup=schedule.warmup_steps,
                    total=total_steps,
                    decay=schedule.decay,
                )
                for group, rate in zip(optimizer.param_groups, peak_rates, strict=True):
                    group["lr"] = rate * scale
                with device.autocast():
                    losses = loss(wrapped, batch, epoch, index)
                optimizer.zero_grad(set_to_none=True)
                losses["loss"].backward()
                norm = nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_norm)
                if not torch.isfinite(norm):
                    raise UserError(
                        f"{name}: gradient is {norm.item()} in epoch {epoch + 1}, batch {index}; "
                        f"expected a finite number; lower {name}.learning_rate"
                    )
                optimizer.step()
                for key, value in losses.items():
                    state["sums"][key] = state["sums"].get(key, 0.0) + value.item()
                state["step"] += 1
                state["index"] = index + 1
                state["events"] += len(batch.target) * device.world
                if stop.asked or state["step"] % schedule.checkpoint_steps == 0:
                    save()
                if stop.asked:
                    print(f"{name}: stopped on request; the same command goes on", flush=True)
                    raise Stopped
            row = {"epoch": float(epoch + 1), "step": float(state["step"])}
            row |= {k: v / max(1, len(mine)) for k, v in state["sums"].items()}
            wrapped.eval()
            row |= validate(model)
            state["curves"].append(row)
            if _is_best(state["curves"], schedule.monitor):
                state["best_epoch"] = epoch
                if device.rank == 0:
                    save_atomic(best_file, model.state_dict(), {"epoch": epoch})
            print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
            state |= {"epoch": epoch + 1, "index": 0, "sums": {}}
            save()
    # Without an epoch the best weights are those that training was given.
    weights = load_tensors(best_file)[0] if state["curves"] else model.state_dict()
    return Outcome(
        curves=state["curves"],
        best_epoch=state["best_epoch"] + 1,
        best_weights=weights,
        train_seconds=state["seconds"],
        events_per_second=state["events"] / max(1e-9, state["seconds"]),
    )


def _is_best(curves: list[dict[str, float]], monitor: str) -> bool:
    """Whether the newest row's monitored score beats all before; losses count downwards."""
    sign = -1 if monitor.endswith("loss") else 1
    scores = [sign * row[monitor] for row in curves]
    return len(scores) == 1 or scores[-1] > max(scores[:-1])


def _exhausted(state: dict[str, Any], schedule: Schedule) -> bool:
    """Whether the last `patience` epochs brought nothing better."""
    if schedule.patience is None or state["best_epoch"] < 0:
        return False
    return state["epoch"] - 1 - state["best_epoch"] >= schedule.patience


class _StopFlag:
    """Turns SIGTERM and SIGINT into a flag while the block runs."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _StopFlag:
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self.asked = True
