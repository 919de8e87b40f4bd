"""Training on one device: targets a second, the kernels that take the time, and bfloat16's losses.

    python benchmarks/training_device.py --out training.json [--device cuda] [--small]

Whole steps of stage 2 (batch, forward, backward, optimizer) of HSTU and HPGR on a generated log, at
params.yaml's batch and at long histories in a large one, in float32 and bfloat16. Of each: targets
a second, the share of a profiled step's time in which the device computes, and the kernels with the
largest shares of that. Then the largest relative difference of the losses that the same steps give
in bfloat16 and in float32 (without dropout, which would draw other numbers).

Needs torch, numpy and PyYAML. Reads params.yaml; writes the file of --out, after each figure.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import yaml  # noqa: E402
from torch.autograd import DeviceType  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from benchmarks.attention_device import PRECISIONS, Timer, asked_for, write_figures  # noqa: E402
from hpgr.data.batches import TrainingWindows  # noqa: E402
from hpgr.data.log import DTYPES, EventLog, Meta  # noqa: E402
from hpgr.model.catalogue import Catalogue  # noqa: E402
from hpgr.model.interface import build  # noqa: E402
from hpgr.training import finetune  # noqa: E402
from hpgr.training.device import Device  # noqa: E402

LARGEST = 12  # kernels that are named
NAME = 90  # characters of a kernel's name


def main() -> None:
    """Measure, print a line a figure, write the file."""
    asked, timer = asked_for(__doc__, seconds=1.0)
    figures = []
    for figure in training_figures(timer, small=asked.small):
        figures.append(figure)
        write_figures(asked.out, timer, {"training": figures})


def training_figures(timer: Timer, *, small: bool) -> Iterator[dict[str, Any]]:
    """Whole steps of stage 2 at params.yaml's batch, and at long histories in a large batch."""
    log = generated_log(num_users=20 if small else 3000, longest=100 if small else 4000)
    steps = 3 if small else 10
    sizes = [(50, 128)] if small else [(200, 4096), (2048, 32768)]
    for max_history, batch_tokens in sizes:
        for name in ("hstu", "hpgr"):
            cfg = parameters(name, max_history, batch_tokens, dim=16 if small else 64)
            seen: dict[str, list[float]] = {}
            for precision, dtype in PRECISIONS.items():
                run = Run(cfg, log, Device(timer.place, dtype, 0, 1))
                seen[precision] = [run.step() for _ in range(steps)]
                seconds = timer.median(run.step)
                figure = {
                    "model": name, "max_history": max_history,
                    "batch_tokens": batch_tokens, "precision": precision,
                    "targets_per_second": round(run.targets_per_step / seconds),
                    "ms_per_step": round(1000 * seconds, 1), "peak_gib": timer.peak_gib(),
                }  # fmt: skip
                print(
                    f"training {name}, {max_history} events, {batch_tokens} tokens, "
                    f"{precision}: {figure['targets_per_second']} targets/s, "
                    f"{figure['peak_gib']} GiB",
                    flush=True,
                )
                yield figure | kernels(run, timer, steps=1 if small else 5)
            exact, rounded = (np.array(seen[p]) for p in ("float32", "bfloat16"))
            apart = float(np.max(np.abs(rounded - exact) / exact))
            print(f"training {name}, {max_history} events: losses differ by {apart:.2e} at most")
            yield {
                "model": name, "max_history": max_history, "batch_tokens": batch_tokens,
                "steps": steps, "largest_relative_loss_difference": apart,
            }  # fmt: skip


def kernels(run: Run, timer: Timer, *, steps: int) -> dict[str, Any]:
    """Shares of a step's time: the device's, `busy`, and of that each of the largest kernels'.

    On a CPU its operations stand for kernels.
    """
    cuda = timer.place.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, acc_events=True) as recorded:
        timer.wait()
        start = time.perf_counter()
        for _ in range(steps):
            run.step()
        timer.wait()
        seconds = time.perf_counter() - start
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    spent: dict[str, tuple[float, int]] = {}
    for event in recorded.key_averages():
        if event.device_type == kind and not getattr(event, "is_user_annotation", False):
            time_us = event.self_device_time_total if cuda else event.self_cpu_time_total
            spent[event.key] = (time_us, event.count)
    total = sum(time_us for time_us, _ in spent.values())
    largest = sorted(spent.items(), key=lambda item: -item[1][0])[:LARGEST]
    return {
        "busy": round(total / 1e6 / seconds, 3),
        "launches_per_step": round(sum(count for _, count in spent.values()) / steps),
        "kernels": [
            {"name": name[:NAME], "share": round(time_us / max(total, 1e-9), 4),
             "ms_per_step": round(time_us / 1000 / steps, 4), "calls_per_step": count / steps}
            for name, (time_us, count) in largest
        ],
    }  # fmt: skip


class Run:
    """Stage 2 step by step, without validation and checkpoints."""

    def __init__(self, cfg: SimpleNamespace, log: EventLog, device: Device) -> None:
        torch.manual_seed(0)
        settings = cfg.finetune
        self.windows = TrainingWindows(
            log, max_history=cfg.model.max_history, batch_tokens=settings.batch_tokens,
            num_candidates=settings.num_candidates, random_windows=True, seed=0,
        )  # fmt: skip
        self.plan, self.index, self.device = self.windows.plan(0), 0, device
        self.targets_per_step = self.windows.tokens_per_epoch / len(self.plan)
        catalogue = Catalogue.of(log)
        self.model = build(cfg.model, catalogue, ranking=True).to(device.device)
        self.model.train()
        self.optimizer = finetune._optimizer(self.model, cfg)
        self.loss = partial(finetune._loss, cfg, device.device)

    def step(self) -> float:
        """One step; its loss."""
        index = self.index % len(self.plan)
        self.index += 1
        batch = self.windows.batch(self.plan[index], 0, index)
        with self.device.autocast():
            loss = self.loss(self.model, batch, 0, index)["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


def parameters(name: str, max_history: int, batch_tokens: int, *, dim: int) -> SimpleNamespace:
    """params.yaml with another network, history, batch and width; no dropout."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["model"] |= {
        "name": name,
        "dim": dim,
        "max_history": max_history,
        "dropout": 0.0,
        "num_blocks": 2,
    }
    raw["finetune"] |= {"batch_tokens": batch_tokens, "inherit": False}
    raw["finetune"]["num_candidates"] = min(32, max_history // 4)
    return SimpleNamespace(
        **{name: SimpleNamespace(**raw[name]) for name in ("model", "finetune", "pretrain")}
    )


def generated_log(*, num_users: int, longest: int, num_items: int = 4000) -> EventLog:
    """Users with log-normal numbers of events, in sessions of ten, all of them for training."""
    random = np.random.default_rng(0)
    count = np.clip(random.lognormal(np.log(longest / 8), 1.0, num_users), 3, longest).astype(int)
    offsets = np.concatenate([[0], np.cumsum(count)])
    total = int(offsets[-1])
    place = np.arange(total) - np.repeat(offsets[:-1], count)
    categories = np.arange(num_items + 1)  # one of twenty for every item
    label = random.integers(0, 2, total)
    arrays = {
        "user_offsets": offsets,
        "item": 2 + random.zipf(1.3, total) % (num_items - 2),
        "timestamp": 10**9 + place * 60 + place // 10 * 7200,
        "action": label + 1,
        "label": label,
        "session": place // 10,
        "split": np.zeros(total),
        "category_offsets": categories,
        "category": 1 + np.arange(num_items) % 20,
        "action_value": np.array([np.nan, 0, 1]),
    }
    meta = Meta(num_users, num_items, 3, 21, total, "leave-one-out", 1800)
    return EventLog(meta=meta, **{n: a.astype(DTYPES[n]) for n, a in arrays.items()})


if __name__ == "__main__":
    main()
