"""The item vectors of stage 1: how well they find items of the same session.

    python benchmarks/stage_one.py [WORKSPACE] [--items TITLE ...] [--out FILE]

Reads the sessionized log and the weights of both training stages of a workspace (the current
folder). The measure is that of `hpgr.training.item_probe`: recall@20 and mean reciprocal rank of an
item of the same held-out session, every item weighing the same. Beside stage 1 stand the item
table of stage 2, where there is one, PPMI-SVD of co-occurrence within the training sessions, the
most frequent items, items of the same frequency, and random vectors. `--items` adds the five
nearest items of some titles.

The last line is a JSON object of the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads OpenMP

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.results_file import write_measured  # noqa: E402
from hpgr.data.log import EventLog  # noqa: E402
from hpgr.runtime import read_json  # noqa: E402
from hpgr.training.checkpoint import load_tensors  # noqa: E402
from hpgr.training.cooccurrence import ppmi_svd  # noqa: E402
from hpgr.training.item_probe import SessionProbe  # noqa: E402
from hpgr.workspace import Workspace  # noqa: E402

NEIGHBOURS = 5


def item_vectors(file: Path) -> Tensor:
    """The catalogue's vectors [V, D] among the weights of a stage: items and their categories."""
    weights, _ = load_tensors(file)
    found = [name for name in weights if name.endswith("items.item.weight")]
    if not found:
        raise SystemExit(f"{file}: expected the weights of a network with stage 1")
    prefix = found[0].removesuffix("item.weight")
    table = weights[found[0]][:-1]  # the last row is the mask token
    if f"{prefix}category_table.weight" in weights:
        names = ("category", "category_table.weight", "category_offsets")
        category, rows, offsets = (weights[prefix + name] for name in names)
        table = table + functional.embedding_bag(category, rows, offsets[:-1], mode="mean")
    return table


def neighbours(vectors: Tensor, events: np.ndarray) -> np.ndarray:
    """The nearest items of each item by cosine of centred vectors, int64 [V, NEIGHBOURS]."""
    known = torch.from_numpy(events > 0)
    table = functional.normalize(vectors - vectors[known].mean(0), dim=-1)
    nearest = []
    for low in range(0, len(table), 512):
        likeness = table[low : low + 512] @ table.T
        likeness[:, ~known] = -2
        own = torch.arange(len(likeness))
        likeness[own, low + own] = -2
        nearest.append(likeness.topk(NEIGHBOURS, dim=1).indices)
    return torch.cat(nearest).numpy()


def measure(
    workspace: Workspace, *, seed: int = 0, titles: tuple[str, ...] = ()
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, list[str]]]]:
    """Figures by kind of vectors, and the nearest titles of `titles` by kind of vectors."""
    log = EventLog.open(workspace.arrays)
    probe = SessionProbe(log, seed=seed)
    vectors = {"stage 1": item_vectors(workspace.pretrained / "model.safetensors")}
    if (workspace.finetuned / "model.safetensors").is_file():
        vectors["stage 2"] = item_vectors(workspace.finetuned / "model.safetensors")
    closed_form = ppmi_svd(log, vectors["stage 1"].shape[1], seed=seed)
    figures = {name: probe(table) for name, table in vectors.items()}
    figures |= probe.references(closed_form, seed=seed)
    named: dict[str, dict[str, list[str]]] = {}
    for name, table in {**vectors, "ppmi_svd": closed_form}.items():
        named[name] = _named(workspace, neighbours(table, probe.events), titles) if titles else {}
    rounded = {n: {k: round(v, 4) for k, v in row.items()} for n, row in figures.items()}
    return rounded, named


def _named(
    workspace: Workspace, nearest: np.ndarray, titles: tuple[str, ...]
) -> dict[str, list[str]]:
    rows = pq.read_table(workspace.sessions / "items.parquet", columns=["item", "title"])
    title = dict(zip(rows["item"].to_pylist(), rows["title"].to_pylist(), strict=True))
    item = {text: index for index, text in title.items()}
    if unknown := [text for text in titles if text not in item]:
        raise SystemExit(f"no item has the title {unknown[0]!r}")
    return {t: [str(title.get(i)) for i in nearest[item[t]].tolist()] for t in titles}


def main() -> None:
    """Measure one workspace."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", nargs="?", type=Path, default=Path())
    parser.add_argument("--items", nargs="*", default=[], metavar="TITLE")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    workspace = Workspace(asked.workspace)
    figures, named = measure(workspace, titles=tuple(asked.items))
    for kind, rows in named.items():
        for title, nearest in rows.items():
            print(f"{kind}: {title}: {'; '.join(nearest)}")
    if asked.out:
        trained = read_json(workspace.pretrained / "config.json")
        made_by = {part: trained[part] for part in ("model", "pretrain", "training")}
        write_measured(asked.out, "stage_one.py", figures, neighbours=named, **made_by)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
