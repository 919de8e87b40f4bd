"""Long histories: the gain of trained networks from each user's older events.

    python benchmarks/history_length.py CELLFOLDER... [--quick] [--out FILE]

A cell's folder is below benchmarks/cells/ and holds a network of the global-time split. Every
network is asked the same test queries, whose users have at least LONG events by then, and reads the
newest 50, 200, 500 and so on of these, up to `model.max_history`; the weights stay as trained.
Gains are metrics with the longest minus those with each shorter one, with paired intervals over
users. All events leave the answers, read or not. The last line is a JSON object of the figures.
`--quick` asks fewer queries and users.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads OpenMP

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.noise import METRICS, measure_cells, opened, rounded, some  # noqa: E402
from hpgr.cli import run  # noqa: E402
from hpgr.config import Evaluate, load_config  # noqa: E402
from hpgr.data.log import TEST, EventLog  # noqa: E402
from hpgr.evaluation import protocols, ranking  # noqa: E402
from hpgr.evaluation.metric_tables import Tables, ranking_tables, retrieval_tables  # noqa: E402
from hpgr.evaluation.model_protocols import Ranker  # noqa: E402
from hpgr.evaluation.protocols import Asked, LabelledQueries, Queries  # noqa: E402
from hpgr.evaluation.retrieval import Retrieved, blocks, seen_pairs  # noqa: E402
from hpgr.metrics import ranks_of, top_items  # noqa: E402
from hpgr.model.scoring import Scorer  # noqa: E402
from hpgr.workspace import Workspace  # noqa: E402

LENGTHS = (50, 200, 500, 1000, 2000)  # events read
LONG = 500  # events that a user of a query has, at least
QUERIES, QUICK_QUERIES = 2000, 100  # for the next item
USERS, QUICK_USERS = 150, 20  # whose candidates are judged


def long_ones(log: EventLog, queries: Asked, least: int) -> np.ndarray:
    """Mark the queries that see at least so many events, bool [Q]."""
    return queries.visible(log) >= least


def retrieved(
    network: Ranker, log: EventLog, queries: Queries, settings: Evaluate, length: int
) -> Retrieved:
    """Ranks of hidden items and best items after the newest `length` events."""
    parts = []
    for block in blocks(log, queries, length):
        asked = queries.take(block)
        scores = network.retrieve(asked.histories(log, length))
        removed = seen_pairs(log, asked, remove=log.meta.remove_history)
        ranks = ranks_of(scores, asked.target, removed)
        parts.append(Retrieved.of(ranks, top_items(scores, removed, settings.cutoffs[0]), scores))
    return Retrieved.joined(parts)


def judged(
    network: Ranker,
    log: EventLog,
    queries: Queries,
    candidates: LabelledQueries,
    settings: Evaluate,
    lengths: Sequence[int],
) -> list[Tables]:
    """Tables of retrieval and ranking, whose models are lengths; the longest stands against all."""
    names = {str(length): length for length in lengths}
    found = {n: retrieved(network, log, queries, settings, length) for n, length in names.items()}
    chances = {
        name: ranking.score(network, log, candidates, max_history=length, title=name)
        for name, length in names.items()
    }
    longest = str(max(lengths))
    return [
        retrieval_tables("R2", log, queries, found, settings, main=longest),
        ranking_tables("K1", log, candidates, chances, settings, main=longest),
    ]


def figures_of(tables: Sequence[Tables], lengths: Sequence[int]) -> dict[str, Any]:
    """Values by length, and the gains of the longest over each shorter one."""
    every: dict[str, Any] = {}
    for length in map(str, lengths):
        rows = [table.metrics[length] for table in tables]
        every[length] = {"values": {m: row[m] for row in rows for m in METRICS if m in row}}
        gains = {
            row.metric: {"value": row.difference, "low": row.low, "high": row.high}
            for table in tables
            for row in table.plots["differences"].itertuples()
            if row.against == length and row.metric in METRICS
        }
        if gains:
            every[length]["gains_of_longest"] = gains
    return every


def measure(folders: Sequence[Path], *, quick: bool) -> dict[str, Any]:
    """The figures of every cell, by MODEL/SEED and length, and the numbers of what was asked.

    Raises:
        UserError: see `opened`.
    """
    log = opened(folders)
    settings = load_config(ROOT / "params.yaml").evaluate
    scorers = {
        "/".join(f.resolve().parts[-2:]): Scorer.load(Workspace(f).finetuned) for f in folders
    }
    next_item = protocols.next_item(log, TEST)
    next_item = next_item.take(long_ones(log, next_item, LONG))
    queries = some(next_item, QUICK_QUERIES if quick else QUERIES, settings)
    labelled = protocols.labelled(log, TEST)
    labelled = labelled.take(long_ones(log, labelled, LONG))
    users = np.random.default_rng(settings.seed).permutation(np.unique(labelled.user))
    candidates = labelled.take(np.isin(labelled.user, users[: QUICK_USERS if quick else USERS]))
    models = {}
    for name, scorer in scorers.items():
        lengths = [length for length in LENGTHS if length <= scorer.max_history]
        tables = judged(scorer, log, queries, candidates, settings, lengths)
        models[name] = figures_of(tables, lengths)
    return {
        "events_at_least": LONG,
        "queries": len(queries),
        "users_with_candidates": len(np.unique(candidates.user)),
        "candidates": len(candidates.label),
        "models": rounded(models),
    }


if __name__ == "__main__":
    run(partial(measure_cells, __doc__, "history_length.py", measure))
