"""Sample the CPU and memory use of a stage and store it beside the stage's outputs.

Writes `resources.csv` into the stage's output folder, one row a sample: `time` (seconds since
1970), `cpu_percent` (100 is one core), `memory_mb` (resident, with children), `gpu_memory_mb`
(reserved by torch in this process). A stage that fails writes none.
"""

from __future__ import annotations

import csv
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from hpgr.runtime import atomic_path

COLUMNS = ("time", "cpu_percent", "memory_mb", "gpu_memory_mb")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
MEGABYTE = 1 << 20


@contextmanager
def recorded(output: Path) -> Iterator[None]:
    """Sample this process and its children during the block, then write `resources.csv`.

    The pause between samples grows by a tenth each time: a stage of seconds gets a curve, one of
    hours a short file.
    """
    samples: list[tuple[float, float, float, float]] = []
    done = threading.Event()
    sampler = threading.Thread(target=_sample, args=(samples, done), daemon=True)
    sampler.start()
    try:
        yield
    finally:
        done.set()
        sampler.join()
    with atomic_path(output / "resources.csv") as temporary, temporary.open("w") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([round(value, 3) for value in sample] for sample in samples)


def _sample(samples: list[tuple[float, float, float, float]], done: threading.Event) -> None:
    process = psutil.Process()
    pause = FIRST_PAUSE_S
    clock, (cpu, _) = time.monotonic(), _used(process)
    # Start in wall time plus a monotonic clock, so that samples never go back in time.
    epoch = time.time() - clock
    while True:
        ended = done.wait(pause)
        pause = min(pause * 1.1, LONGEST_PAUSE_S)
        now, (used, memory) = time.monotonic(), _used(process)
        percent = 100 * max(used - cpu, 0.0) / max(now - clock, 1e-9)
        clock, cpu = now, used
        samples.append((epoch + clock, percent, memory / MEGABYTE, _gpu_memory()))
        if ended:
            return


def _used(process: psutil.Process) -> tuple[float, int]:
    """Return CPU seconds and resident bytes of the process and its children."""
    seconds, memory = 0.0, 0
    for member in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # a child that ended after the listing
            seconds += sum(member.cpu_times()[:2])  # user and system
            memory += member.memory_info().rss
    return seconds, memory


def _gpu_memory() -> float:
    torch = sys.modules.get("torch")  # only if the stage has imported it
    if torch is None or not getattr(torch, "cuda", None) or not torch.cuda.is_initialized():
        return 0.0
    return torch.cuda.memory_reserved() / MEGABYTE
