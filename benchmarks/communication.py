"""Communication of processes over gloo on this machine, against time = latency + bytes / bandwidth.

    python benchmarks/communication.py [--quick] [--out benchmarks/results/communication.json]

All-reduce of S bytes sends 2 (n - 1) / n S a process (ring), all-to-all (n - 1) / n S. Latency and
bandwidth are fitted to every other size; errors are those of the sizes between, relative, their
median and the largest. Two clocks: wall is the time of the slowest process, cpu the seconds of all
processes together, which a busy machine disturbs less; each the least over rounds. The bytes are
those that the loopback device counted, against the formula. docs/scale.md reads them. The last line
is a JSON object of the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads OpenMP

import numpy as np
import torch
from torch import distributed, multiprocessing

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.results_file import write_measured  # noqa: E402

SHARE = {"all_reduce": 2.0, "all_to_all": 1.0}  # times (n - 1) / n: of the bytes, sent by a process
WORLDS = (2, 4)
CLOCKS = ("wall", "cpu")


def sent_over_loopback() -> int:
    """Bytes that the loopback device of this machine has sent."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    (counters,) = (line.partition(":")[2] for line in lines if line.strip().startswith("lo:"))
    return int(counters.split()[8])


def process(rank: int, world: int, folder: str, sizes: list[int], rounds: int) -> None:
    """Time both collectives at each size, and leave the first process's figures as a file."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    found = []
    for name in SHARE:
        for size in sizes:
            one, other = torch.zeros(size // 4), torch.zeros(size // 4)
            wall, cpu, sent = [], [], []
            for _ in range(rounds + 1):  # the first one warms up
                before = sent_over_loopback()
                distributed.barrier()
                began, spent = time.perf_counter(), time.process_time()
                if name == "all_reduce":
                    distributed.all_reduce(one)
                else:
                    distributed.all_to_all_single(other, one)
                mine = torch.tensor([time.perf_counter() - began, time.process_time() - spent])
                all_mine = [torch.zeros(2) for _ in range(world)]
                distributed.all_gather(all_mine, mine)
                both = torch.stack(all_mine)
                wall.append(float(both[:, 0].max()))
                cpu.append(float(both[:, 1].sum()))
                sent.append(sent_over_loopback() - before)
            row = {"collective": name, "bytes": size, "wall": min(wall[1:]), "cpu": min(cpu[1:])}
            found.append(row | {"sent": float(np.median(sent[1:]))})
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


def fitted(moved: np.ndarray, seconds: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Latency in s, bandwidth in bytes/s, and relative errors of sizes between the fitted ones."""
    columns = np.stack([np.ones(len(moved)), moved], axis=1)
    rows = columns / seconds[:, None]  # least squares of relative errors
    (latency, per_byte), *_ = np.linalg.lstsq(rows[::2], np.ones(len(rows[::2])), rcond=None)
    error = np.abs(columns @ [latency, per_byte] / seconds - 1)[1::2]
    return float(latency), float(1 / per_byte), error


def measure(*, quick: bool) -> dict[str, float]:
    """All figures."""
    sizes = [1 << power for power in range(12, 23 if quick else 27)]
    figures = {}
    for world in WORLDS:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (world, folder, sizes, 5 if quick else 15)
            multiprocessing.spawn(process, arguments, nprocs=world)
            found = json.loads(Path(folder, "found.json").read_text())
        for name, share in SHARE.items():
            rows = [row for row in found if row["collective"] == name]
            moved = np.array([row["bytes"] for row in rows]) * share * (world - 1) / world
            key = f"{name}_{world}"
            for clock in CLOCKS:
                latency, bandwidth, error = fitted(moved, np.array([row[clock] for row in rows]))
                figures |= {
                    f"{key}_{clock}_latency_us": round(1e6 * latency, 1),
                    f"{key}_{clock}_gb_per_s": round(bandwidth / 1e9, 3),
                    f"{key}_{clock}_error": round(float(np.median(error)), 3),
                    f"{key}_{clock}_largest_error": round(float(error.max()), 3),
                }
            figures[f"{key}_bytes_over_formula"] = round(rows[-1]["sent"] / world / moved[-1], 3)
    return figures


def main() -> None:
    """Print the figures and, if asked, write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(quick=asked.quick)
    if asked.out:
        write_measured(asked.out, "communication.py", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
