"""Training speed of stage 2 on this machine: HPGR, HPGR without a ranking, and HSTU of its size.

    python benchmarks/training.py [--quick] [--out benchmarks/results/training.json]

Each network takes steps on the same generated log with the settings of params.yaml; they
take turns, so that a ratio does not depend on the speed of the machine at one moment. A figure is
targets (next items to name) a second of this process's CPU, of one thread; a step includes its
batch, loss, gradients and the optimizer. The last line is a JSON object of the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
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
from hpgr.data.log import EventLog  # noqa: E402
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


def stepper(cfg: Config, log: EventLog) -> Callable[[], int]:
    """A function that trains one step and returns its number of targets."""
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
    loss = partial(_loss, cfg, log.meta.num_items, torch.device("cpu"), model)
    batches = (
        windows.batch(rows, epoch, index)
        for epoch in itertools.count()
        for index, rows in enumerate(windows.plan(epoch))
    )

    def step() -> int:
        batch = next(batches)
        optimizer.zero_grad()
        loss(batch, 0, 0)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.finetune.clip_norm)
        optimizer.step()
        return len(batch.target)

    return step


def measure(folder: Path, *, rounds: int) -> dict[str, float]:
    """Targets a second of each network, the median of `rounds` steps, and their ratios."""
    values = read_params(ROOT / "params.yaml")
    log = EventLog.open(write(generated(), resolve(values), folder).arrays)
    steps = {}
    for name, changes in NETWORKS.items():
        own = {**values, **{key: values[key] | part for key, part in changes.items()}}
        if own["model"]["name"] == "hstu":
            own["model"] = {key: own["model"][key] for key in HSTU_KEYS}
        steps[name] = stepper(resolve(own), log)
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            began = time.process_time()
            targets = step()
            if turn:  # the first one warms up
                spent[name].append(targets / (time.process_time() - began))
    speed = {name: float(np.median(found)) for name, found in spent.items()}
    figures = {f"{name}_targets_per_s": round(found) for name, found in speed.items()}
    return figures | {
        "hpgr_over_hstu": round(speed["hpgr"] / speed["hstu"], 3),
        "hpgr_without_ranking_over_hstu": round(speed["hpgr_without_ranking"] / speed["hstu"], 3),
    }


def main() -> None:
    """Print the figures and, if asked, write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), rounds=5 if asked.quick else 25)
    if asked.out:
        write_measured(asked.out, "training.py", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
