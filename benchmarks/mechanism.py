"""The preference mechanism of a trained model: its anchors, and what taking them away costs.

    python benchmarks/mechanism.py [WORKSPACE] [--quick] [--out benchmarks/results/mechanism.json]

Reads the sessionized log and the trained network of a workspace (the current folder), validation
events alone:

- overlap: Jaccard index of the anchors of two candidates of one user, for the 20 best retrieved
  items and for 20 random ones, of users with at least 60 events; beside it that of random anchors;
- interventions, with the weights as trained: NDCG@10 of the next item and AUC of labelled
  candidates with the anchors as trained, with random ones, with none;
- deletion: the mean absolute change of a retrieved item's log odds of being liked when its anchors
  are taken out of the history, over that when as many other events are.

The last line is a JSON object of the figures. `--quick` asks fewer users.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads OpenMP

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.results_file import commit, machine  # noqa: E402
from hpgr.data.histories import Histories, histories  # noqa: E402
from hpgr.data.log import FIRST_ITEM, EventLog  # noqa: E402
from hpgr.metrics import top_items  # noqa: E402
from hpgr.model.attention.select import intervened  # noqa: E402
from hpgr.model.scoring import Scorer  # noqa: E402
from hpgr.runtime import read_json, write_text  # noqa: E402
from hpgr.training.validation import Validation  # noqa: E402
from hpgr.workspace import Workspace  # noqa: E402

CANDIDATES, LEAST_EVENTS = 20, 60
EXPLAINED = 5  # best items of a user whose anchors are taken out


def interventions(
    scorer: Scorer, log: EventLog, queries: int, *, ranking: bool
) -> dict[str, dict[str, float]]:
    """Scores on validation events by mode of the anchors."""
    validation = Validation(
        log, max_history=scorer.max_history, num_queries=queries, ranking=ranking, seed=0
    )
    found = {}
    for mode in ("chosen", "random", "none"):
        torch.manual_seed(0)
        with intervened(scorer.model, mode):
            found[mode] = validation(scorer.model, scorer.device)
    return found


def asking(log: EventLog, max_history: int, users: int) -> Histories:
    """Histories up to the last validation event of users with enough events."""
    queries = Validation(log, max_history=max_history, num_queries=1 << 40, ranking=False, seed=0)
    last = np.append(queries.user[1:] != queries.user[:-1], True)
    row, user = queries.rows[last], queries.user[last]
    kept = np.flatnonzero(row - log.user_offsets[user] >= LEAST_EVENTS)
    kept = np.sort(np.random.default_rng(0).permutation(kept)[:users])
    return histories(log, user[kept], row[kept], log.timestamp[row[kept]], max_history)


def jaccard(anchors: np.ndarray) -> float:
    """Mean Jaccard index of the sets [N, A] of all pairs of N candidates."""
    sets = [set(row[row >= 0].tolist()) for row in anchors]
    pairs = [(a, b) for i, a in enumerate(sets) for b in sets[:i]]
    return float(np.mean([len(a & b) / max(1, len(a | b)) for a, b in pairs]))


def overlaps(scorer: Scorer, log: EventLog, asked: Histories, best: np.ndarray) -> dict[str, float]:
    """Mean Jaccard indices between candidates of one user, and the share of newest 32 events."""
    random = np.random.default_rng(0)
    drawn = random.integers(FIRST_ITEM, log.meta.num_items, best.shape)
    offsets = np.arange(len(asked) + 1) * CANDIDATES
    found, recent = {}, 0.0
    for name, items in (("top", best), ("random", drawn)):
        position, _ = scorer.explain(asked, offsets, items.ravel())
        by_user = position.reshape(len(asked), CANDIDATES, -1)
        found[f"overlap_{name}"] = float(np.mean([jaccard(rows) for rows in by_user]))
        age = np.repeat(asked.length, CANDIDATES)[:, None] - position
        recent = float((age[position >= 0] <= 32).mean())
    chance = [
        jaccard(np.stack([random.permutation(n)[: position.shape[1]] for _ in range(CANDIDATES)]))
        for n in asked.length
    ]
    return found | {"overlap_chance": float(np.mean(chance)), "share_in_newest_32": recent}


def deletion(scorer: Scorer, asked: Histories, best: np.ndarray) -> dict[str, float]:
    """Mean absolute change of the log odds without an item's anchors, and without other events."""
    random = np.random.default_rng(0)
    items = best[:, :EXPLAINED].ravel()
    offsets = np.arange(len(asked) + 1) * EXPLAINED
    position, _ = scorer.explain(asked, offsets, items)
    alone = asked.take(np.repeat(np.arange(len(asked)), EXPLAINED))
    single = np.arange(len(items) + 1)

    def log_odds(kept: np.ndarray) -> np.ndarray:
        before = np.concatenate([[0], np.cumsum(kept)])
        rest = Histories.gather(
            alone, before[alone.offsets], np.flatnonzero(kept), alone.request_time
        )
        chance = scorer.rank(rest, single, items).astype(np.float64)
        return np.log(chance) - np.log1p(-chance)

    everything = np.ones(len(alone.item), dtype=bool)
    full, changes = log_odds(everything), {}
    for name in ("anchors", "random"):
        kept = everything.copy()
        for query, anchors in enumerate(position):
            place = anchors[anchors >= 0]
            if name == "random":
                place = random.permutation(alone.length[query])[: len(place)]
            kept[alone.offsets[query] + place] = False
        changes[name] = float(np.abs(log_odds(kept) - full).mean())
    return {
        "deletion_anchors": changes["anchors"],
        "deletion_random": changes["random"],
        "deletion_ratio": changes["anchors"] / changes["random"],
    }


def measure(workspace: Workspace, *, quick: bool) -> dict[str, float]:
    """All figures of a trained workspace; those of ranking where a ranking is trained."""
    log, scorer = EventLog.open(workspace.arrays), Scorer.load(workspace.finetuned)
    users = 50 if quick else 300
    trained = read_json(workspace.finetuned / "config.json")
    if not trained["model"].get("preference"):
        raise SystemExit(f"{workspace.finetuned}: expected a network with model.preference: true")
    by_mode = interventions(scorer, log, 500 if quick else 6000, ranking=trained["ranking"])
    found = {f"{key}, {mode}": v for mode, row in by_mode.items() for key, v in row.items()}
    gain = {mode: row["validation_ndcg@10"] for mode, row in by_mode.items()}
    for mode in ("random", "none"):
        found[f"ndcg_drop_{mode}_anchors_relative"] = 1 - gain[mode] / gain["chosen"]
    asked = asking(log, scorer.max_history, users)
    scores = scorer.retrieve(asked)
    seen = np.repeat(np.arange(len(asked)), asked.length), asked.item
    best = top_items(scores, seen, CANDIDATES)
    if trained["ranking"]:
        auc = {mode: row["validation_auc"] for mode, row in by_mode.items()}
        for mode in ("random", "none"):
            found[f"auc_drop_{mode}_anchors"] = auc["chosen"] - auc[mode]
        found |= overlaps(scorer, log, asked, best) | deletion(scorer, asked, best)
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    """Measure one workspace."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", nargs="?", type=Path, default=Path())
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    workspace = Workspace(asked.workspace)
    torch.set_num_threads(1)
    figures = measure(workspace, quick=asked.quick)
    if asked.out:
        trained = read_json(workspace.finetuned / "config.json")
        record = {
            "command": " ".join(["python", "benchmarks/mechanism.py", *sys.argv[1:]]),
            "figures": figures,
            "model": trained["model"],
            "training": trained["training"],
            "machine": machine(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "commit": commit(),
        }
        write_text(asked.out, json.dumps(record, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
