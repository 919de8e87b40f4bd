"""Row-wise Adagrad beside AdamW: what a step of a large table costs, and what a model learns.

    python benchmarks/large_tables.py [--quick] [--out FILE]

1. A table of a million rows, of which a batch's gradient holds 41,000: seconds of processor time a
   step, and the bytes that the optimizer keeps.
2. HSTU on ML-1M with shared negatives, as a large catalogue trains, its tables updated by AdamW and
   by row-wise Adagrad at several rates: NDCG@10 on validation, of the best step. Each runs from the
   same first weights. Makes the sessions of ml-1m/leave-one-out, if they are missing. Left out by
   `--quick`.

Trains below benchmarks/cells/ml-1m/leave-one-out/hstu/0/large-tables; what ended is not run again.
The last line is a JSON object of the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads OpenMP

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.matrix import Cell, run_cell
from benchmarks.results_file import RESULTS, write_measured
from benchmarks.tuning import SHARED, train
from hpgr.runtime import read_json, write_json
from hpgr.training.table_optimizer import TableAdamW

ROWS, WIDTH, IN_USE, STEPS = 1_000_000, 64, 41_000, 9
SCALES = (1.0, 3.0, 10.0, 30.0, 100.0)
CELL = Cell("ml-1m", "leave-one-out", "hstu", "0")
EVERY = {
    "model.dim": 64, "finetune.loss": "shared", "finetune.learning_rate": 0.002,
    "finetune.decay": True, "finetune.warmup_steps": 100, "finetune.clip_norm": 1.0,
    "finetune.random_windows": True, "finetune.batch_tokens": 4096, "finetune.steps": 640,
    "finetune.validate_steps": 80, "finetune.patience": 100,
    # Drawn uniformly and from the batch, they are fewer than the catalogue.
    "finetune.shared_negatives": 512,
}  # fmt: skip


def cost(adagrad_rows: int) -> dict[str, float]:
    """Median seconds of processor time of a step, and the bytes kept."""
    draw = torch.Generator().manual_seed(0)
    table = nn.Parameter(torch.randn(ROWS, WIDTH, generator=draw))
    settings = SimpleNamespace(learning_rate=0.002, weight_decay=0.0)
    tables = SimpleNamespace(adagrad_rows=adagrad_rows, adagrad_scale=1.0)
    optimizer = TableAdamW([([table], 1.0)], settings, tables, fused=True)
    spent = []
    for _ in range(STEPS):
        rows = torch.randint(ROWS, (IN_USE,), generator=draw)
        table.grad = torch.zeros(ROWS, WIDTH).index_fill_(0, rows, 1e-3)
        began = time.process_time()
        optimizer.step()
        spent.append(time.process_time() - began)
    return {"step_s": round(float(np.median(spent)), 4), "state_bytes": optimizer.state_bytes()}


def quality(name: str, values: dict[str, Any]) -> dict[str, float]:
    """NDCG@10 on validation of a training with `values`, and the step it is of."""
    place = CELL.workspace.root / "large-tables" / name
    record = place / "score.json"
    if not record.is_file():
        write_json(record, train(CELL, EVERY, place, values))
    found = read_json(record)
    return {"ndcg@10": round(found["score"], 4), "best_step": found["best_step"]}


def main() -> None:
    """Measure and print; write the result where `--out` says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "large_tables.json")
    asked = parser.parse_args()
    found: dict[str, Any] = {
        "table": {"rows": ROWS, "width": WIDTH, "rows_in_use": IN_USE},
        "adamw": cost(ROWS + 1),
        "adagrad": cost(ROWS),
    }
    if not asked.quick:
        run_cell(CELL, SHARED)
        found["validation"] = {"adamw": quality("adamw", {"finetune.adagrad_rows": 10**9})} | {
            f"adagrad x {scale:g}": quality(
                f"adagrad-{scale:g}",
                {"finetune.adagrad_rows": 1000, "finetune.adagrad_scale": scale},
            )
            for scale in SCALES
        }
    write_measured(asked.out, "large_tables.py", found, settings=EVERY)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
