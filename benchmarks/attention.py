"""Sparse attention against dense on a CPU: time forward and backward, and peak memory.

    python benchmarks/attention.py [--quick] [--out benchmarks/results/attention.json]

8,192 tokens in histories of equal length, 2 heads x 64, position and time bias, float32, one
thread. Times are CPU seconds of the thread, the least of several rounds in which all ways take
turns. Memory is what a fresh process adds to its peak.

- `eager`: the whole matrix of each history with torch's plain operations;
- `causal`: every causal tile, the project's best dense way, its tile list included;
- `sparse`: preference-guided, 8 anchors, sigma 2, window 32, over random signals of width 32, where
  choices have no structure to gain from. Its parts: `select` the anchors, `mask` (bells, tile list
  and weights, with the gradient to the peaks) and `attend` (one layer). Selection and mask serve
  every layer, and count in full here.

The last line is a JSON object of the ratios. `--quick` takes one round of fewer lengths.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads OpenMP

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.results_file import commit, machine  # noqa: E402
from hpgr.model.attention.cover import NUM_TIME_BUCKETS, build_tiles, time_bucket  # noqa: E402
from hpgr.model.attention.entry import additive_attention  # noqa: E402
from hpgr.model.attention.reference import dense_attention  # noqa: E402
from hpgr.model.attention.select import select  # noqa: E402
from hpgr.model.preference import gaussian_mask  # noqa: E402
from hpgr.runtime import write_text  # noqa: E402
from hpgr.training.device import choose_device  # noqa: E402

TOKENS, HEADS, WIDTH, SIGNAL = 8192, 2, 64, 32
ANCHORS, SIGMA, WINDOW, TILE = 8, 2.0, 32, 64
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
QUICK = (2048, 4096, 8192)
LONGEST_EAGER = 4096
ROUNDS, QUICK_ROUNDS, DENSE_ROUNDS = 12, 4, 3


class Problem:
    """Histories of one length, and the ways to compute their attention, forward and backward."""

    def __init__(self, length: int, tokens: int = TOKENS) -> None:
        torch.manual_seed(0)
        self.length, self.tokens = length, tokens
        self.row = torch.arange(tokens)
        self.first = self.row // length * length
        self.time = torch.randint(0, 1000, (tokens,)).cumsum(0)
        self.factors = [
            torch.randn(tokens, HEADS, WIDTH).mul_(0.1).requires_grad_() for _ in range(3)
        ]
        self.biases = [
            torch.randn(n).mul_(0.02).requires_grad_() for n in (length + 1, NUM_TIME_BUCKETS)
        ]
        self.upstream = torch.randn(tokens, HEADS, WIDTH)
        signal = torch.nn.functional.normalize(torch.randn(tokens, SIGNAL), dim=-1)
        self.signal = signal.requires_grad_()

    def eager(self, users: int | None = None) -> None:
        """Compute `users` histories (None: all), one after the other."""
        position, bucket = self.biases
        for user in range(users or self.tokens // self.length):
            part = slice(user * self.length, (user + 1) * self.length)
            row, stamp = self.row[: self.length], self.time[part]
            distance = (row[:, None] - row).clamp_min(0)
            bias = position[distance] + bucket[time_bucket(stamp[:, None] + 60 - stamp)]
            visible = torch.ones(self.length, self.length, dtype=torch.bool).tril_()
            factors = [x[part] for x in self.factors]
            dense_attention(*factors, visible=visible, bias=bias).backward(self.upstream[part])

    def causal(self) -> None:
        """Compute every causal tile."""
        tiles = build_tiles(
            self.first, self.row + 1, self.tokens, size=TILE,
            query_time=self.time + 60, key_time=self.time,
        )  # fmt: skip
        self._attend(tiles, None)

    def sparse(self) -> dict[str, float]:
        """Compute what the mask shows; returns the seconds of each part."""
        began = time.thread_time()
        anchor, similarity = select(self.signal, self.signal, self.first, self.row + 1, ANCHORS)
        selected = time.thread_time()
        peak = torch.sigmoid(4 * similarity.detach()).requires_grad_()
        mask = gaussian_mask(
            anchor, peak, self.first, self.row + 1, self.tokens,
            sigma=SIGMA, window=WINDOW, tiles=None,
            query_time=self.time + 60, key_time=self.time, query_position=None,
        )  # fmt: skip
        weight = mask.weight.detach().requires_grad_()
        masked = time.thread_time()
        self._attend(mask.tiles, weight)
        attended = time.thread_time()
        mask.weight.backward(weight.grad)
        weighed = time.thread_time()
        similarity.backward(peak.grad)
        return {
            "select": selected - began + time.thread_time() - weighed,
            "mask": masked - selected + weighed - attended,
            "attend": attended - masked,
        }

    def _attend(self, tiles, weight) -> None:
        out = additive_attention(
            *self.factors, tiles,
            position_bias=self.biases[0], time_bias=self.biases[1], weight=weight,
        )  # fmt: skip
        out.backward(self.upstream)


def main() -> None:
    """Measure, print a line a length, write the file and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute, less exact")
    parser.add_argument("--out", type=Path, help="file for all figures")
    asked = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        one_thread()
    lengths, rounds = (QUICK, QUICK_ROUNDS) if asked.quick else (LENGTHS, ROUNDS)
    figures = times(lengths, rounds, quick=asked.quick)
    peaks = {way: peak_mib(way, 4096) for way in ("eager", "causal", "sparse")}
    print(f"peak memory at 4096, MiB: {peaks}", flush=True)
    ratios = {
        "ratio_vs_eager_4096": figures[4096]["eager"] / figures[4096]["sparse"],
        "ratio_vs_best_dense_4096": figures[4096]["causal"] / figures[4096]["sparse"],
        "ratio_vs_best_dense_8192": figures[8192]["causal"] / figures[8192]["sparse"],
        "t8192_over_t2048": figures[8192]["sparse"] / figures[2048]["sparse"],
        "memory_ratio_4096": peaks["sparse"] / peaks["eager"],
        "selection_share": figures[4096]["select"] / figures[4096]["sparse"],
    }
    ratios = {name: round(value, 3) for name, value in ratios.items()}
    if asked.out:
        record = {
            "command": "python benchmarks/attention.py" + " --quick" * asked.quick,
            "machine": machine(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "commit": commit(),
            "torch": torch.__version__,
            "tokens": TOKENS,
            "heads": HEADS,
            "width": WIDTH,
            "rounds": rounds,
            "milliseconds": figures,
            "peak_mib_4096": peaks,
            "ratios": ratios,
        }
        write_text(asked.out, json.dumps(record, indent=2) + "\n")
    print(json.dumps(ratios))


def one_thread() -> None:
    """Set torch up as training does, with one thread."""
    torch.set_num_threads(1)
    choose_device("cpu", "float32")


def times(lengths: tuple[int, ...], rounds: int, *, quick: bool) -> dict[int, dict[str, float]]:
    """Milliseconds of each way by length, the least of `rounds`; all take turns.

    `quick` computes one history eagerly, once: histories of one length cost alike.
    """
    problems = [Problem(length) for length in lengths]
    best: dict[int, dict[str, float]] = {length: {} for length in lengths}

    def keep(length: int, name: str, seconds: float) -> None:
        least = best[length].get(name, float("inf"))
        best[length][name] = min(least, round(1000 * seconds, 1))

    problems[0].sparse()  # the first call counts nowhere
    for number in range(rounds):
        for problem in problems:
            length = problem.length
            if length == LONGEST_EAGER and quick and not number:
                keep(length, "eager", clocked(problem.eager, 1) * (TOKENS // length))
            if length <= LONGEST_EAGER and not quick and number < DENSE_ROUNDS:
                keep(length, "eager", clocked(problem.eager))
            if number < (1 if quick else DENSE_ROUNDS):
                keep(length, "causal", clocked(problem.causal))
            for _ in range(2):
                parts = problem.sparse()
                for name, seconds in (*parts.items(), ("sparse", sum(parts.values()))):
                    keep(length, name, seconds)
    for length, figures in best.items():
        print(f"{length}, ms: {figures}", flush=True)
    return best


def clocked(call: Callable[..., object], *arguments: int) -> float:
    """CPU seconds of this thread in a call."""
    began = time.thread_time()
    call(*arguments)
    return time.thread_time() - began


def peak_mib(way: str, length: int) -> float:
    """MiB that a way adds to the peak of a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_added, (way, length))


def _added(way: str, length: int) -> float:
    with contextlib.redirect_stdout(sys.stderr):
        one_thread()
    small = Problem(64, tokens=256)
    for way_of in (small.eager, small.causal, small.sparse):
        way_of()  # libraries load, and take memory
    problem = Problem(length)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = _status("VmRSS")
    getattr(problem, way)()
    return round(_status("VmHWM") - before, 1)


def _status(key: str) -> float:
    """A figure of this process, MiB."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(key)) / 1024


if __name__ == "__main__":
    main()
