"""The training loop of both stages, resumable at any step.

Length is counted in steps, whatever the size of the log. Batches are a pure function of (seed,
epoch, index), so the position in the data is two integers. SIGTERM and SIGINT end the run after the
current step with a checkpoint; the same command resumes it.
Writes: a scratch folder with the checkpoint and the best weights; returns the curves.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
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
from hpgr.training.ending import Ending
from hpgr.training.length import (
    Schedule,
    Speed,
    exhausted,
    is_best,
    is_due,
    learning_rate_scale,
    validation_interval,
)

NORM = "gradient_norm"  # column of the curves
STOP = "stop"  # share of the processes that were asked to stop


class Stopped(SystemExit):
    """The run was asked to stop and left a checkpoint; exit code 143, as after SIGTERM."""

    def __init__(self) -> None:
        super().__init__(143)


@dataclass(frozen=True)
class Outcome:
    """Curves (one row a validation), the best weights, the ending and the speed of a training.

    `best` is the row of the best validation, -1 without one; `trained_on` names the devices and
    precisions of the run, in order.
    """

    curves: list[dict[str, float]]
    best: int
    best_weights: dict[str, Tensor]
    ending: Ending
    train_seconds: float
    events_per_second: float
    trained_on: list[str]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    windows: TrainingWindows,
    *,
    loss: Callable[[nn.Module, Batch, int, int], dict[str, Tensor]],
    validate: Callable[[], dict[str, float]],
    device: Device,
    schedule: Schedule,
    scratch: Path,
    name: str,
    watched: Mapping[str, Sequence[nn.Parameter]] = MappingProxyType({}),
) -> Outcome:
    """Train `model` and return the weights of the validation with the best monitored score.

    Args:
        model: on its device already, not wrapped.
        optimizer: over its parameters; each group's `lr` is the peak rate.
        windows: the training data.
        loss: (model, batch, epoch, index) -> named losses; `loss` is the one to minimise.
        validate: named scores of the model, the same in every process, so that all agree on when to
            stop. It draws no random number: a run does not depend on how often it is validated.
        device: device and precision.
        schedule: length, patience, rates.
        scratch: folder of checkpoint and best weights; emptied by the caller when all is written.
        name: shown on the progress bar; the section of params.yaml.
        watched: parts of the model whose gradient norms the curves show beside the whole one's, all
            of them before clipping.

    Raises:
        Stopped: after SIGTERM or SIGINT, with a checkpoint.
        UserError: the loss is not finite.
    """
    wrapped = device.wrap(model)
    # No gradient keeps these equal in all processes.
    averages = [weight for weight in model.parameters() if not weight.requires_grad]
    peak_rates = [group["lr"] for group in optimizer.param_groups]
    best_file = scratch / BEST
    state: dict[str, Any] = {
        "epoch": 0, "index": 0, "step": 0, "curves": [], "best": -1, "planned": schedule.steps,
        "sums": {}, "seconds": 0.0, "events": 0, "trained_on": [],
    }  # fmt: skip
    tensors, saved = load_checkpoint(scratch, leads=device.rank == 0)
    if saved:
        state = saved
        unpack_state(tensors, model, optimizer)
        # Batches are dealt to the processes in turn: other processes go on at the same one.
        state["index"] = state["index"] * state.get("world", device.world) // device.world
    state["world"] = device.world
    state["trained_on"] = [*dict.fromkeys([*state.get("trained_on", []), str(device)])]
    batches_per_epoch = max(1, windows.batches_per_epoch // device.world)
    every = validation_interval(schedule, batches_per_epoch)
    stop, speed = _StopFlag(), Speed(schedule, every, device)
    started, seconds_before = time.perf_counter(), state["seconds"]

    def say(text: str) -> None:
        if device.rank == 0:
            with tqdm.external_write_mode():
                print(f"{name}: {text}", flush=True)

    def save() -> None:
        state["seconds"] = seconds_before + time.perf_counter() - started
        if device.rank == 0:
            save_checkpoint(scratch, pack_state(model, optimizer), state)
        if device.world > 1:
            distributed.barrier()

    def validated() -> dict[str, float]:
        wrapped.eval()
        scores = validate()
        wrapped.train()
        return scores

    if saved:
        say(f"goes on at step {state['step']:,} of {state['planned']:,}")
    wrapped.train()
    batches = _batches(windows, device, state["epoch"], state["index"])
    bar = tqdm(
        total=state["planned"], initial=state["step"], desc=name, unit="step", mininterval=5,
        disable=device.rank > 0,
    )  # fmt: skip
    with stop, bar:
        while True:
            if is_due(state, every):
                began = time.perf_counter()
                row = _row(state, batches_per_epoch) | validated()
                state["curves"].append(row)
                if is_best(state["curves"], schedule.monitor):
                    state["best"] = len(state["curves"]) - 1
                    if device.rank == 0:
                        save_atomic(best_file, model.state_dict(), {"step": state["step"]})
                say(", ".join(f"{k} {v:.4g}" for k, v in row.items()))
                state["sums"] = {}
                save()
                speed.pause(time.perf_counter() - began)
            if state["step"] >= state["planned"] or exhausted(state, schedule):
                break
            epoch, index, windows_in = next(batches)
            batch = windows.batch(windows_in, epoch, index * device.world + device.rank)
            scale = learning_rate_scale(
                state["step"],
                warmup=schedule.warmup_steps,
                total=state["planned"],
                decay=schedule.decay,
            )
            for group, rate in zip(optimizer.param_groups, peak_rates, strict=True):
                group["lr"] = rate * scale
            if device.world > 1:
                device.seed_step(windows.seed, epoch, index)
            with device.autocast():
                losses = loss(wrapped, batch, epoch, index)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            found = losses | gradient_norms(watched)
            found[NORM] = nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_norm)
            # All processes see the same losses and stop at the same step: if one left alone, the
            # others would wait for it.
            found[STOP] = torch.full_like(found[NORM], float(stop.asked))
            values = device.means(found)
            asked = values.pop(STOP) > 0
            if not math.isfinite(values[NORM]):
                raise UserError(
                    f"{name}: gradient is {values[NORM]} at step {state['step'] + 1}; "
                    f"expected a finite number; lower {name}.learning_rate"
                )
            optimizer.step()
            device.agree(averages)
            asked = asked or (device.world == 1 and stop.asked)  # nobody waits for it
            for key, value in values.items():
                state["sums"][key] = state["sums"].get(key, 0.0) + value
            state |= {"epoch": epoch, "index": index + 1, "step": state["step"] + 1}
            state["events"] += len(batch.target) * device.world
            bar.update()
            if speed.known(state["step"]):
                spent = seconds_before + time.perf_counter() - started
                state["planned"] = speed.plan(state["step"], spent, validated)
                bar.total = state["planned"]
                if state["planned"] < schedule.steps:
                    say(speed.describe(state["planned"], name))
                save()
            elif asked or state["step"] % schedule.checkpoint_steps == 0:
                save()
            if asked:
                say("stopped on request; the same command goes on")
                raise Stopped
    # Without a step the best weights are those that training was given.
    weights = load_tensors(best_file)[0] if state["curves"] else model.state_dict()
    return Outcome(
        curves=state["curves"],
        best=state["best"],
        best_weights=weights,
        ending=Ending.of(
            state["curves"],
            state["best"],
            wanted=schedule.steps,
            planned=state["planned"],
            monitor=schedule.monitor,
        ),
        train_seconds=state["seconds"],
        events_per_second=state["events"] / max(1e-9, state["seconds"]),
        trained_on=state["trained_on"],
    )


def gradient_norms(watched: Mapping[str, Sequence[nn.Parameter]]) -> dict[str, Tensor]:
    """Norm of the gradient of each part, named like the curves' column, on its device."""
    return {
        f"{NORM}_{part}": nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        for part, weights in watched.items()
    }


def _batches(
    windows: TrainingWindows, device: Device, epoch: int, index: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield epoch, index and windows of this process's batches, without end, from a position on."""
    while True:
        plan, world = windows.plan(epoch), device.world
        # Every process gets the same number of batches, and at least one.
        plan = plan[: len(plan) // world * world] or (plan * world)[:world]
        mine = plan[device.rank :: world]
        for number in range(index, len(mine)):
            yield epoch, number, mine[number]
        epoch, index = epoch + 1, 0


def _row(state: dict[str, Any], batches_per_epoch: int) -> dict[str, float]:
    """A row of the curves without its scores: step, epoch, mean losses since the row before."""
    step = state["step"]
    count = step - (state["curves"][-1]["step"] if state["curves"] else 0)
    row = {"step": float(step), "epoch": round(step / batches_per_epoch, 2)}
    return row | {k: v / count for k, v in state["sums"].items()}


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
