"""Attention over long histories on one device: dense against sparse, forward and backward.

    python benchmarks/attention_long.py --out attention-long.json [--device cuda] [--small]

65,536 tokens in histories of equal length, 4 heads x 64, position and time bias. `dense` is every
causal pair as the project computes it; `all` is every causal pair by the kernel of the sparse mask;
`sparse` is preference-guided, 8 anchors, sigma 2, window 32, over random signals of width 32. Its
parts: `select` the anchors, `mask` (bells, tile list, weights), `attend` (one layer, forward and
backward). Each back end's results are compared with the first's. Beside a time stands the least
that the device could take, by the operations and bytes of the part and by the rates of a large copy
and of large products, measured first; and its share of the time, one at best.

Needs torch and numpy; Triton's kernels are measured where triton is installed.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.attention_device import (  # noqa: E402
    HEADS,
    PRECISIONS,
    TILE,
    WIDTH,
    Timer,
    asked_for,
    limits,
    write_figures,
)
from hpgr.model.attention.cover import HIDDEN, NUM_TIME_BUCKETS, build_tiles  # noqa: E402
from hpgr.model.attention.entry import additive_attention, choose  # noqa: E402
from hpgr.model.attention.key_tiles import SIZE, build_key_tiles  # noqa: E402
from hpgr.model.attention.select import select  # noqa: E402
from hpgr.model.preference import gaussian_mask  # noqa: E402

LENGTHS = (1024, 2048, 4096, 8192, 16384)
LONGEST_ALL = 4096  # the buffers of every causal pair take 5 GiB there
SIGNAL, ANCHORS, SIGMA, WINDOW = 32, 8, 2.0, 32


def main() -> None:
    """Measure, print a line a figure, write the file after each length."""
    asked, timer = asked_for(__doc__, seconds=0.5)
    result: dict[str, Any] = {
        "choice": choose(timer.place.type, max(LENGTHS))._asdict(),
        "limits": limits(timer, small=asked.small),
        "figures": [],
    }
    for length in (64, 128) if asked.small else LENGTHS:
        for figure in figures_of(timer, 256 if asked.small else 65536, length, result["limits"]):
            print(json.dumps(figure), flush=True)
            result["figures"].append(figure)
        write_figures(asked.out, timer, result)


@dataclass(frozen=True)
class Work:
    """Fewest operations and bytes of a part, counted."""

    operations: float
    bytes: float
    precision: str

    @classmethod
    def of_attention(cls, tokens: int, pairs: int, precision: str, *, weighted: bool) -> Work:
        """Forward and backward over the visible pairs of query and key, nothing computed twice.

        Products of width `WIDTH`: two forward, four backward. Memory: queries, keys and values read
        by each pass, the sums and their gradients once, three gradients; a weight is read by each
        pass and gets a gradient.
        """
        size = PRECISIONS[precision].itemsize
        moved = 11 * tokens * HEADS * WIDTH * size + (3 * 4 * pairs if weighted else 0)
        return cls(6 * 2 * HEADS * WIDTH * pairs, moved, precision)

    def against(self, limits: dict[str, float], seconds: float) -> dict[str, Any]:
        """The least time on a device, by its measured limits (roofline), as a share of `seconds`.

        The larger of two times: operations over the rate of products, bytes over the rate of a
        copy; S. Williams and others, CACM 52(4), 2009.
        """
        compute = self.operations / limits[self.precision]
        memory = self.bytes / limits["memory"]
        return {
            "limit_ms": round(1000 * max(compute, memory), 4),
            "limited_by": "compute" if compute > memory else "memory",
            "share_of_limit": round(max(compute, memory) / seconds, 4),
        }


def figures_of(
    timer: Timer, tokens: int, length: int, limits: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """Figures of one length, by part, back end and precision."""
    place = timer.place
    torch.manual_seed(0)
    row = torch.arange(tokens, device=place)
    first, end, stamp = row // length * length, row + 1, row * 60
    times = {"query_time": stamp + 60, "key_time": stamp}
    signal = torch.nn.functional.normalize(torch.randn(tokens, SIGNAL, device=place), dim=-1)
    label = {"tokens": tokens, "length": length}

    def figure(part: str, call, work: Work | None = None, **more: Any) -> dict[str, Any]:
        seconds = timer.median(call)
        least = work.against(limits, seconds) if work else {}
        return {**label, "part": part, "ms": round(1000 * seconds, 3), **least, **more,
                "peak_gib": timer.peak_gib()}  # fmt: skip

    def chosen():
        return select(signal, signal, first, end, ANCHORS)

    every = int((end - first).sum())
    cosines = Work(2 * SIGNAL * every, (2 * SIGNAL + 3 * ANCHORS) * 4 * tokens, "float32")
    yield figure("select", chosen, cosines)
    anchor, similarity = chosen()
    peak = torch.sigmoid(4 * similarity).requires_grad_()

    def masked():
        return gaussian_mask(
            anchor, peak, first, end, tokens, sigma=SIGMA, window=WINDOW, tiles=None,
            query_position=None, **times,
        )  # fmt: skip

    yield figure("mask", masked)
    mask = masked()
    weight = mask.weight.detach().requires_grad_()
    shown = int(((weight > 0) & (mask.tiles.bucket != HIDDEN)).sum())
    ends = [("tiles", mask.tiles, weight)]
    if importlib.util.find_spec("triton") and place.type == "cuda":
        ends.append(("triton", mask.tiles, weight))
        if length <= LONGEST_ALL:
            ends.append(("all", every_pair(first, end, tokens, times), None))
    ends.append(("dense", build_tiles(first, end, tokens, size=TILE, **times), None))
    biases = [
        torch.randn(n, device=place).mul_(0.02).requires_grad_()
        for n in (length + 1, NUM_TIME_BUCKETS)
    ]
    drawn = [torch.randn(tokens, HEADS, WIDTH, device=place).mul_(0.3) for _ in range(4)]
    reference: dict[bool, list[torch.Tensor]] = {}
    for precision, dtype in PRECISIONS.items():
        *factors, upstream = (x.to(dtype) for x in drawn)
        inputs = [x.requires_grad_() for x in factors]
        for way, tiles, weights in ends:

            def step(way=way, tiles=tiles, weights=weights, inputs=inputs, upstream=upstream):
                out = additive_attention(
                    *inputs, tiles, position_bias=biases[0], time_bias=biases[1], weight=weights,
                    name={"all": "triton", "dense": "auto"}.get(way, way),
                )  # fmt: skip
                by = [*inputs, *biases, *([weights] if weights is not None else [])]
                return [out, *torch.autograd.grad(out, by, upstream)]

            found = [x.detach().float() for x in step()]
            expected = reference.setdefault(weights is None, found)
            apart = max(
                float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)
            )
            del found
            work = Work.of_attention(
                tokens, every if weights is None else shown, precision, weighted=weights is not None
            )
            yield figure(
                "attend", step, work, way=way, precision=precision, relative_difference=apart
            )


def every_pair(first, end, tokens: int, times: dict[str, Any]):
    """Tiles of every causal pair of query and key block, sorted by block, then query."""
    blocks = -(-end // SIZE) - first // SIZE
    query = torch.repeat_interleave(torch.arange(tokens, device=first.device), blocks)
    block = torch.arange(len(query), device=first.device)
    block += (first // SIZE - (blocks.cumsum(0) - blocks))[query]
    order = (block * tokens + query).argsort()
    return build_key_tiles(query[order], block[order], first, end, tokens, **times)[0]


if __name__ == "__main__":
    main()
