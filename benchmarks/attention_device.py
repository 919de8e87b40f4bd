"""Attention and training on one device: how fast, and how far bfloat16 is from float32.

    python benchmarks/attention_device.py --out attention.json [--device cuda] [--small]

Attention, forward and backward, of one packed batch of equally long causal histories: square tiles
in chunks of 32 ("before"), in chunks as large as the device gets them ("tiles"), and one padded
tile a segment ("segments"). Training, whole steps of stage 2 (batch, forward, backward, optimizer)
on a generated log: targets a second, as before and now, and the largest relative difference of the
losses that the same steps give in bfloat16 and in float32 (without dropout, which would draw other
numbers).

Needs torch, numpy, safetensors, tqdm and PyYAML. Reads params.yaml, writes the file of --out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads OpenMP; see hpgr.cli

import numpy as np
import torch
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from hpgr.data.batches import TrainingWindows  # noqa: E402
from hpgr.data.log import DTYPES, EventLog, Meta  # noqa: E402
from hpgr.model import hstu, session_encoder, trunk  # noqa: E402
from hpgr.model.attention import select  # noqa: E402
from hpgr.model.attention import tiles as attention  # noqa: E402
from hpgr.model.attention.cover import NUM_TIME_BUCKETS, Tiles, build_tiles  # noqa: E402
from hpgr.model.catalogue import Catalogue  # noqa: E402
from hpgr.model.interface import build  # noqa: E402
from hpgr.training import finetune, losses  # noqa: E402
from hpgr.training.device import Device  # noqa: E402

HEADS, WIDTH, TILE = 4, 64, 64
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Measure, print a line a figure, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path("attention-device.json"))
    parser.add_argument("--small", action="store_true", help="seconds, also on a CPU")
    asked = parser.parse_args()
    kind = asked.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    timer = Timer(place, seconds=0.05 if asked.small else 2.0)
    began = time.perf_counter()
    result = {
        "device": torch.cuda.get_device_name(place) if kind == "cuda" else "cpu",
        "torch": torch.__version__,
        "attention": list(attention_figures(timer, small=asked.small)),
        "training": list(training_figures(timer, small=asked.small)),
        "seconds": round(time.perf_counter() - began, 1),
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{asked.out} written after {result['seconds']} s")


class Timer:
    """Seconds of a call on one device, and the most memory that it held."""

    def __init__(self, place: torch.device, *, seconds: float) -> None:
        self.place, self.seconds = place, seconds

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.place.type == "cuda":
            torch.cuda.synchronize(self.place)

    def median(self, call: Callable[[], object], *, warm: int = 2, least: int = 3) -> float:
        """Median seconds of as many calls as fit the time, after `warm` that do not count."""
        for _ in range(warm):
            call()
        if self.place.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.place)
        times: list[float] = []
        while len(times) < least or (sum(times) < self.seconds and len(times) < 100):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    def peak_gib(self) -> float | None:
        """Most memory since `median` began to count."""
        if self.place.type != "cuda":
            return None
        return round(torch.cuda.max_memory_allocated(self.place) / 2**30, 2)


@contextlib.contextmanager
def patched(module: Any, **changes: Any) -> Iterator[None]:
    """Other attributes of a module for a while."""
    old = {name: getattr(module, name) for name in changes}
    for name, value in changes.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in old.items():
            setattr(module, name, value)


@contextlib.contextmanager
def as_before() -> Iterator[None]:
    """Chunk sizes of a CPU and square tiles, whatever the device."""

    def square(*arguments: Any, **options: Any) -> Any:
        return build_tiles(*arguments, **{**options, "segments": False})

    with contextlib.ExitStack() as stack:
        for module in (hstu, session_encoder, trunk):
            stack.enter_context(patched(module, build_tiles=square))
        stack.enter_context(small_chunks())
        stack.enter_context(patched(losses, _at_a_time=lambda _: losses.ROWS_AT_A_TIME))
        queries = select.QUERIES_AT_A_TIME
        stack.enter_context(patched(select, ACCELERATOR_QUERIES=queries))
        yield


def small_chunks() -> contextlib.AbstractContextManager[None]:
    """Attention in chunks of as many pairs as on a CPU."""

    def few(tiles: Tiles, _: torch.Tensor) -> int:
        return max(1, attention.PAIRS_AT_A_TIME // tiles.bucket[:1].numel())

    return patched(attention, _at_a_time=few)


def attention_figures(timer: Timer, *, small: bool) -> Iterator[dict[str, Any]]:
    """Forward and backward of the attention sum, and how far the three ways are apart."""
    tokens = 256 if small else 65536
    for length in (64, 128) if small else (512, 2048):
        row = torch.arange(tokens, device=timer.place)
        first = row // length * length
        stamp = row * 60
        covers = {
            segments: build_tiles(
                first, row + 1, tokens, size=TILE, query_time=stamp + 60, key_time=stamp,
                segments=segments,
            )
            for segments in (False, True)
        }  # fmt: skip
        for precision, dtype in PRECISIONS.items():
            torch.manual_seed(0)
            q, k, v, upstream = (
                torch.randn(tokens, HEADS, WIDTH, device=timer.place).mul_(0.3).to(dtype)
                for _ in range(4)
            )
            inputs = [x.requires_grad_() for x in (q, k, v)]
            biases = [
                torch.randn(n, device=timer.place).mul_(0.02).requires_grad_()
                for n in (length + 1, NUM_TIME_BUCKETS)
            ]
            reference: list[torch.Tensor] = []
            for way in ("before", "tiles", "segments"):
                tiles = covers[way == "segments"]

                def step(tiles=tiles, inputs=inputs, biases=biases, upstream=upstream):
                    out = attention.tile_attention(
                        *inputs, tiles, position_bias=biases[0], time_bias=biases[1]
                    )
                    return [out, *torch.autograd.grad(out, [*inputs, *biases], upstream)]

                with small_chunks() if way == "before" else contextlib.nullcontext():
                    seconds = timer.median(step)
                    found = [x.detach().float() for x in step()]
                reference = reference or found
                apart = max(
                    float((a - b).norm() / b.norm()) for a, b in zip(found, reference, strict=True)
                )
                figure = {
                    "tokens": tokens, "length": length, "heads": HEADS, "width": WIDTH,
                    "precision": precision, "way": way, "ms": round(1000 * seconds, 2),
                    "peak_gib": timer.peak_gib(), "relative_difference": apart,
                }  # fmt: skip
                print(
                    f"attention {tokens} x {HEADS} x {WIDTH}, length {length}, {precision}, "
                    f"{way}: {figure['ms']} ms, {figure['peak_gib']} GiB, {apart:.1e} from before",
                    flush=True,
                )
                yield figure


def training_figures(timer: Timer, *, small: bool) -> Iterator[dict[str, Any]]:
    """Whole steps of stage 2 at params.yaml's batch, and at long histories in a large batch."""
    log = generated_log(num_users=20 if small else 3000, longest=100 if small else 4000)
    steps = 3 if small else 10
    sizes = [(10, 64), (50, 128)] if small else [(200, 4096), (2048, 32768)]
    for max_history, batch_tokens in sizes:
        for name in ("hstu", "hpgr"):
            cfg = parameters(name, max_history, batch_tokens, dim=16 if small else 64)
            seen: dict[str, list[float]] = {}
            for precision, dtype in PRECISIONS.items():
                for way in ("before", "now"):
                    with as_before() if way == "before" else contextlib.nullcontext():
                        run = Run(cfg, log, Device(timer.place, dtype, 0, 1))
                        if way == "now":
                            seen[precision] = [run.step() for _ in range(steps)]
                        seconds = timer.median(run.step)
                    figure = {
                        "model": name, "max_history": max_history,
                        "batch_tokens": batch_tokens, "precision": precision, "way": way,
                        "targets_per_second": round(run.targets_per_step / seconds),
                        "ms_per_step": round(1000 * seconds, 1), "peak_gib": timer.peak_gib(),
                    }  # fmt: skip
                    print(
                        f"training {name}, {max_history} events, {batch_tokens} tokens, "
                        f"{precision}, {way}: {figure['targets_per_second']} targets/s, "
                        f"{figure['peak_gib']} GiB",
                        flush=True,
                    )
                    yield figure
            exact, rounded = (np.array(seen[p]) for p in ("float32", "bfloat16"))
            apart = float(np.max(np.abs(rounded - exact) / exact))
            print(f"training {name}, {max_history} events: losses differ by {apart:.2e} at most")
            yield {
                "model": name, "max_history": max_history, "batch_tokens": batch_tokens,
                "steps": steps, "largest_relative_loss_difference": apart,
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
        self.loss = partial(finetune._loss, cfg, catalogue.num_items, device.device)

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
