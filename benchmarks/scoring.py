"""Batch scoring on this machine: users a second, and the catalogue's part against its own limit.

    python benchmarks/scoring.py [--quick] [--out benchmarks/results/scoring.json]

Users a second: what `hpgr recommend-all` computes (read, retrieve, rank, order) for the users of a
generated log, by a network of params.yaml with fresh weights, which cost as much as trained ones.
Catalogue: the best 50 of 4 thousand, 100 thousand and a million items for each of many states,
against the matrix product alone with the same blocks, and for a single state with and without the
index of `serve.index_items`, over items around centres, as trained ones lie. Seconds are CPU of one
thread. The last line is a JSON object of the figures.
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
from torch.nn import functional

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.planted import write  # noqa: E402
from benchmarks.results_file import write_measured  # noqa: E402
from benchmarks.training import generated  # noqa: E402
from hpgr.config import resolve  # noqa: E402
from hpgr.data.log import FIRST_ITEM, EventLog  # noqa: E402
from hpgr.model.catalogue import Catalogue  # noqa: E402
from hpgr.model.interface import build  # noqa: E402
from hpgr.model.repeat_counts import Pairs  # noqa: E402
from hpgr.model.scoring import Scorer, similarities  # noqa: E402
from hpgr.params_file import read_params  # noqa: E402
from hpgr.registry.bundle import Serving  # noqa: E402
from hpgr.serving.batch import Scoring, Sessions  # noqa: E402
from hpgr.serving.best_items import CELLS, ITEMS_SCORED, Finder  # noqa: E402
from hpgr.serving.item_index import ItemIndex  # noqa: E402
from hpgr.serving.recommender import Item, Recommender  # noqa: E402

PLACES, WIDTH = 50, 64
QUERIES, RECALL = 256, 0.98  # of the index
ADDED = 2_000  # items that successors of ten events add something to
NOTHING = Pairs.of([])
CATALOGUES = {"4k": 4_000, "100k": 100_000, "1m": 1_000_000}


def users_per_second(folder: Path, users: int) -> float:
    """Users a second of the whole answer, of the first `users` of the log."""
    cfg = resolve(read_params(ROOT / "params.yaml"))
    workspace = write(generated(), cfg, folder)
    log = EventLog.open(workspace.arrays)
    torch.manual_seed(0)
    network = build(cfg.model, Catalogue.of(log), ranking=True)
    serving = Serving(
        gap_s=cfg.sessionize.gap_s,
        max_history=cfg.model.max_history,
        retrieve=cfg.evaluate.retrieve,
        remove_history=True,
        ranked=True,
        like_weight=1.0,
        temperature=cfg.finetune.temperature,
    )
    sessions = Sessions.read(workspace.sessions)
    items = [Item(index, name, name, 1) for name, index in sessions.ids.items.items()]
    model = Recommender(
        Scorer(network, torch.device("cpu"), cfg.model.max_history), items, {}, serving
    )
    at = int(log.timestamp.max()) + 1
    scoring = Scoring(model, sessions, at, k=10, eligible=None, drop_seen=True)
    scoring.best(0, 32)  # warms up
    began = time.process_time()
    scoring.best(0, users)
    return users / (time.process_time() - began)


class States:
    """States that wait for their nearest items, as a network that has read holds them."""

    def __init__(
        self,
        states: torch.Tensor,
        unit: torch.Tensor,
        added: Pairs = NOTHING,
    ) -> None:
        self.own, self.unit, self.added = states, unit, added

    def retrieve(self, items: slice) -> np.ndarray:
        """Scores of a part of the catalogue."""
        return self.added.add(similarities(self.own, self.unit, items), items)

    def states(self) -> np.ndarray:
        """States of length one."""
        return self.own.numpy()

    def items(self) -> np.ndarray:
        """Items of length one."""
        return self.unit.numpy()


def catalogue(items: int, rounds: int) -> tuple[float, float]:
    """States a second that find their best items, and what share of the product's speed it is."""
    queries = max(1, CELLS // min(items, ITEMS_SCORED))
    states, table = torch.randn(queries, WIDTH), torch.randn(items, WIDTH)
    finder = catalogue_finder(items)
    normed = functional.normalize(table, dim=-1)
    asked, full = States(states, normed), np.zeros(queries, dtype=bool)
    blocks = [normed[start : start + ITEMS_SCORED] for start in range(0, items, ITEMS_SCORED)]
    found, product = [], []
    for _ in range(rounds):
        began = time.process_time()
        finder._nearest(asked, full, None, None, PLACES)  # type: ignore[arg-type]
        found.append(time.process_time() - began)
        began = time.process_time()
        for block in blocks:
            states @ block.T
        product.append(time.process_time() - began)
    return queries / float(np.median(found)), float(np.median(product) / np.median(found))


def indexed(items: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a state alone, exactly and by an index, and the share that it finds.

    Both without and with what ten events' successors add.
    """
    centres = functional.normalize(torch.randn(round(items**0.5), WIDTH), dim=-1)
    drawn = torch.randint(len(centres), (items + QUERIES,))
    spread = 1.5 * torch.randn(items + QUERIES, WIDTH) / WIDTH**0.5
    unit = functional.normalize(centres[drawn] + spread, dim=-1)
    table, states = unit[:items].clone(), unit[items:]
    finder, full = catalogue_finder(items), np.zeros(1, dtype=bool)
    index = ItemIndex(table.numpy())
    recall = index.tune(states[: QUERIES // 2].numpy(), PLACES, RECALL)
    figures = {
        "index_cells": index.probes / index.cells,
        "index_recall_tuned": round(recall, 3),
    }
    for suffix, pairs in (("", 0), ("_added", ADDED)):
        exact, found, shared = [], [], []
        for state in states[QUERIES // 2 :][:rounds].split(1):
            which = torch.randint(FIRST_ITEM, items, (pairs,)).numpy()
            amount = (0.2 * torch.rand(pairs)).double().numpy()
            added = Pairs(np.zeros(pairs, np.int64), which, amount)
            asked = States(state, table, added)
            began = time.process_time()
            best, _ = finder._nearest(asked, full, None, None, PLACES)  # type: ignore[arg-type]
            exact.append(time.process_time() - began)
            began = time.process_time()
            answer = finder._from_index(index, asked, None, PLACES)  # type: ignore[arg-type]
            found.append(time.process_time() - began)
            assert answer is not None
            shared.append(float(np.isin(best, answer[0]).mean()))
        figures |= {
            f"exact{suffix}_ms": round(1000 * float(np.median(exact)), 2),
            f"index{suffix}_ms": round(1000 * float(np.median(found)), 2),
            f"index{suffix}_recall": round(float(np.mean(shared)), 3),
        }
    return figures


def catalogue_finder(items: int) -> Finder:
    """A finder over so many items, without a network."""
    serving = Serving(1800, 200, PLACES, remove_history=False, ranked=False)
    return Finder(None, serving, np.zeros(items, dtype=np.float32))  # type: ignore[arg-type]


def measure(folder: Path, *, quick: bool) -> dict[str, float]:
    """All figures."""
    users = users_per_second(folder, 128 if quick else 1024)
    figures = {"users_per_s_ml1m": round(users)}
    for name, items in CATALOGUES.items():
        speed, share = catalogue(items, 3 if quick else 15)
        figures |= {
            f"states_per_s_{name}": round(speed),
            f"share_of_gemm_limit_{name}": round(share, 3),
        }
    most = 100_000 if quick else 1_000_000
    single = indexed(most, 20 if quick else QUERIES // 2)
    return figures | {f"{name}_{most // 1000}k": value for name, value in single.items()}


def main() -> None:
    """Print the figures and, if asked, write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        figures = measure(Path(folder), quick=asked.quick)
    if asked.out:
        write_measured(asked.out, "scoring.py", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
