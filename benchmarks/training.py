"""Training speed of stage 2 on this machine: HPGR, HPGR without a ranking, and HSTU of its size.

    python benchmarks/training.py [--quick] [--rectools peer/bin/python]
                                  [--out benchmarks/results/training.json]

Each network takes steps on the same generated log with the settings of params.yaml; they
take turns, so that a ratio does not depend on the speed of the machine at one moment. A figure is
targets (next items to name) a second of CPU, of one thread; a step includes its batch, loss,
gradients and the optimizer. With --rectools, the Python of an environment that has RecTools,
RecTools' HSTU of the same size takes its turns in a process of its own
(`benchmarks/rectools_training.py`). The last line is a JSON object of the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads OpenMP

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.planted import HSTU_KEYS, Planted, write  # noqa: E402
from benchmarks.results_file import write_measured  # noqa: E402
from hpgr.config import Config, resolve  # noqa: E402
from hpgr.data.batches import TrainingWindows  # noqa: E402
from hpgr.data.log import TRAIN, EventLog  # noqa: E402
from hpgr.model.catalogue import Catalogue  # noqa: E402
from hpgr.model.interface import build  # noqa: E402
from hpgr.params_file import read_params  # noqa: E402
from hpgr.training.finetune import _loss, _optimizer  # noqa: E402

USERS, ITEMS, EVENTS_PER_USER = 1500, 3700, 130
CATEGORIES, RATINGS = 18, ("1", "2", "3", "4", "5")
HSTU = {"name": "hstu", "readout": False}
NETWORKS: dict[str, dict[str, dict[str, Any]]] = {
    "hstu": {"model": HSTU, "finetune": {"ranking_weight": 0.0, "inherit": False}},
    "hpgr_without_ranking": {"finetune": {"ranking_weight": 0.0}},
    "hpgr": {},
}
Step = Callable[[], tuple[int, float]]  # trains one step; returns its targets and CPU seconds
# For RecTools' process: glibc gives tensors of many MB back to the system after each operation and
# asks for them again, which took it nearly half of a step. jemalloc did not help as much.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


def generated() -> Planted:
    """A log of the size of a seventh of MovieLens-1M: long users, bulk sessions, five ratings."""
    random = np.random.default_rng(0)
    events, popularity = [], 1 / np.arange(10, ITEMS + 10)
    for user in range(USERS):
        length = int(np.clip(random.lognormal(np.log(EVENTS_PER_USER), 0.9), 20, 1000))
        pauses = np.where(random.random(length) < 0.05, 90_000, random.integers(0, 60, length))
        at = 1_500_000_000 + random.integers(0, 10**7) + np.cumsum(pauses)
        items = random.choice(ITEMS, length, p=popularity / popularity.sum())
        ratings = random.choice(RATINGS, length, p=(0.06, 0.11, 0.26, 0.35, 0.22))
        rows = zip(items, at, ratings, strict=True)
        events += [(f"u{user}", f"i{item}", int(time), rating) for item, time, rating in rows]
    kinds = {f"i{i}": [f"c{i % CATEGORIES}", f"c{i % 7}"] for i in range(ITEMS)}
    return Planted(events, kinds)


def stepper(cfg: Config, log: EventLog) -> Step:
    """A network's steps in this process."""
    torch.manual_seed(0)
    ranking = cfg.finetune.ranking_weight > 0
    windows = TrainingWindows(
        log,
        max_history=cfg.model.max_history,
        batch_tokens=cfg.finetune.batch_tokens,
        num_candidates=cfg.finetune.num_candidates if ranking else 0,
        random_windows=cfg.finetune.random_windows,
        seed=0,
    )
    model = build(cfg.model, Catalogue.of(log), ranking=ranking).train()
    optimizer = _optimizer(model, cfg)
    loss = partial(_loss, cfg, torch.device("cpu"), model)
    batches = (
        windows.batch(rows, epoch, index)
        for epoch in itertools.count()
        for index, rows in enumerate(windows.plan(epoch))
    )

    def step() -> tuple[int, float]:
        began = time.process_time()
        batch = next(batches)
        optimizer.zero_grad()
        loss(batch, 0, 0)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.finetune.clip_norm)
        optimizer.step()
        return len(batch.target), time.process_time() - began

    return step


@contextmanager
def rectools_stepper(python: Path, cfg: Config, log: EventLog, folder: Path) -> Iterator[Step]:
    """RecTools' steps in a process of its own, on the training events of `log`.

    Raises:
        RuntimeError: the process ends before its first step.
    """
    user = np.repeat(np.arange(log.meta.num_users), np.diff(log.user_offsets))
    rows = np.asarray(log.split) == TRAIN
    events = {"user": user[rows], "item": log.item[rows], "timestamp": log.timestamp[rows]}
    np.savez(folder / "events.npz", **events)
    names = ("dim", "num_blocks", "num_heads", "dropout", "max_history")
    sizes = {name: getattr(cfg.model, name) for name in names}
    sizes |= {name: getattr(cfg.finetune, name) for name in ("learning_rate", "temperature")}
    script = ROOT / "benchmarks" / "rectools_training.py"
    with subprocess.Popen(
        [python, script, folder / "events.npz", json.dumps(sizes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **KEEP_MEMORY},
    ) as process:
        assert process.stdin and process.stdout
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{python} {script.name} has ended; its message stands above")

        def step() -> tuple[int, float]:
            print(file=process.stdin, flush=True)
            answer = json.loads(process.stdout.readline())
            return answer["targets"], answer["seconds"]

        yield step


def measure(folder: Path, *, rounds: int, rectools: Path | None = None) -> dict[str, float]:
    """Targets a second of each network, the median of `rounds` steps, and their ratios."""
    values = read_params(ROOT / "params.yaml")
    log = EventLog.open(write(generated(), resolve(values), folder).arrays)
    settings = {}
    for name, changes in NETWORKS.items():
        own = {**values, **{key: values[key] | part for key, part in changes.items()}}
        if own["model"]["name"] == "hstu":
            own["model"] = {key: own["model"][key] for key in HSTU_KEYS}
        settings[name] = resolve(own)
    steps = {name: stepper(cfg, log) for name, cfg in settings.items()}
    if rectools is None:
        speed = take_turns(steps, rounds)
    else:
        with rectools_stepper(rectools, settings["hstu"], log, folder) as peer:
            speed = take_turns({**steps, "rectools_fast": peer}, rounds)
    figures: dict[str, float] = {
        f"{name}_targets_per_s": round(found) for name, found in speed.items()
    }
    figures |= {
        "hpgr_over_hstu": round(speed["hpgr"] / speed["hstu"], 3),
        "hpgr_without_ranking_over_hstu": round(speed["hpgr_without_ranking"] / speed["hstu"], 3),
    }
    if rectools is not None:
        figures["ratio_vs_rectools_fast"] = round(speed["hstu"] / speed["rectools_fast"], 3)
    return figures


def take_turns(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Targets a second of each, the median of `rounds` steps after one to warm up."""
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            targets, seconds = step()
            if turn:
                spent[name].append(targets / seconds)
    return {name: float(np.median(found)) for name, found in spent.items()}


def main() -> None:
    """Print the figures and, if asked, write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rectools", type=Path, metavar="PYTHON")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), rounds=5 if asked.quick else 25, rectools=asked.rectools)
    if asked.out:
        write_measured(asked.out, "training.py", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
