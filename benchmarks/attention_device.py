"""Attention on one device: three covers of the same histories, and how far bfloat16 is off.

    python benchmarks/attention_device.py --out attention.json [--device cuda] [--small]

Forward and backward of one packed batch of equally long causal histories: square tiles in chunks of
32 ("before"), in chunks as large as the device gets them ("tiles"), and one padded tile a segment
("segments"). `Timer` and `limits` serve the other benchmarks of a device too.

Needs torch and numpy. Writes the file of --out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads OpenMP; see hpgr.cli

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from hpgr.model.attention import tiles as attention  # noqa: E402
from hpgr.model.attention.cover import NUM_TIME_BUCKETS, Tiles, build_tiles  # noqa: E402

HEADS, WIDTH, TILE = 4, 64, 64
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Measure, print a line a figure, write the file."""
    asked, timer = asked_for(__doc__, seconds=2.0)
    figures = list(attention_figures(timer, small=asked.small))
    write_figures(asked.out, timer, {"attention": figures})


def asked_for(about: str, *, seconds: float) -> tuple[argparse.Namespace, Timer]:
    """The command line of a device's benchmark, and a timer of `seconds` a figure there."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="seconds, also on a CPU")
    asked = parser.parse_args()
    kind = asked.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    return asked, Timer(place, seconds=0.02 if asked.small else seconds)


def write_figures(out: Path, timer: Timer, figures: dict[str, Any]) -> None:
    """Write the figures so far and what made them."""
    cuda = timer.place.type == "cuda"
    made_by = {
        "device": torch.cuda.get_device_name(timer.place) if cuda else "cpu",
        "torch": torch.__version__,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**made_by, **figures}, indent=2) + "\n")


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


def limits(timer: Timer, *, small: bool) -> dict[str, float]:
    """The device at its best, measured: a large copy and large products.

    Bytes a second read and written, `memory`, and operations a second of each precision.
    """
    side, size = (256, 1 << 16) if small else (8192, 1 << 28)
    source, target = (torch.randn(size, device=timer.place) for _ in range(2))
    found = {"memory": 2 * 4 * size / timer.median(lambda: target.copy_(source))}
    for name, dtype in PRECISIONS.items():
        a, b = (torch.randn(side, side, device=timer.place).to(dtype) for _ in range(2))
        found[name] = 2 * side**3 / timer.median(lambda a=a, b=b: a @ b)
    return found


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


if __name__ == "__main__":
    main()
