"""Noise in histories: what trained networks lose by it, and how much attention falls on it.

    python benchmarks/noise.py CELLFOLDER... [--quick] [--out benchmarks/results/noise.json]

A cell's folder is below benchmarks/cells/ and holds a network trained on rankings (global-time).
Random events come between the real ones at test time, so that 10, 20 and 40 % of a history are such
events (`noisy_log.py`); the weights stay as trained. Every network is asked the same with the same
noise: some test queries for the next item, and the candidates of some test users, which share
windows as in evaluation. Real events alone decide which items leave the answers.

- falls: metrics of R2 and K1 without noise minus those with it, with paired intervals;
- mass: the share of attention on inserted events (`attention_mass.py`), a mean over labelled
  candidates whose query sees one, beside the share that these events have of what is seen.
  "candidates" is the candidates' own attention in every block that reads the whole history,
  "states" that of the newest event in the last block. Attention inside sessions and the read-out
  of the ranking head are no part of it.

The first folder with HSTU is the dense one: `over_dense` divides masses and falls of the others by
its own, falls of NDCG and HR relative to the value without noise, those of AUC and GAUC as they
are; it is null where the dense one does not fall beyond chance. The last line is a JSON object of
the figures. `--quick` asks fewer queries and users.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads OpenMP

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.attention_mass import masses  # noqa: E402
from benchmarks.noisy_log import NoisyLog, with_noise  # noqa: E402
from benchmarks.results_file import write_measured  # noqa: E402
from hpgr.cli import run  # noqa: E402
from hpgr.config import Evaluate, load_config  # noqa: E402
from hpgr.data.log import TEST, EventLog  # noqa: E402
from hpgr.evaluation import protocols, ranking  # noqa: E402
from hpgr.evaluation.metric_tables import Tables, ranking_tables, retrieval_tables  # noqa: E402
from hpgr.evaluation.model_protocols import Ranker  # noqa: E402
from hpgr.evaluation.protocols import Asked, LabelledQueries, Queries  # noqa: E402
from hpgr.evaluation.retrieval import Retrieved, blocks, seen_pairs  # noqa: E402
from hpgr.metrics import ranks_of, top_items  # noqa: E402
from hpgr.model.hstu import HSTU  # noqa: E402
from hpgr.model.scoring import Scorer  # noqa: E402
from hpgr.runtime import UserError  # noqa: E402
from hpgr.workspace import Workspace  # noqa: E402

SHARES = (0.1, 0.2, 0.4)  # of the events of a noisy history
QUERIES, QUICK_QUERIES = 2000, 100  # for the next item
USERS, QUICK_USERS = 150, 20  # whose candidates are judged
READ, QUICK_READ = 300, 60  # queries with candidates whose attention is looked at
CLEAN = "clean"
METRICS = ("ndcg@10", "hr@10", "auc", "gauc")
RELATIVE = ("ndcg@10", "hr@10")  # AUC has its zero at .5


def retrieved(
    network: Ranker,
    log: EventLog,
    noisy: NoisyLog,
    queries: Queries,
    settings: Evaluate,
    max_history: int,
) -> Retrieved:
    """Ranks of hidden items and best items after noisy histories."""
    asked, parts = noisy.asked(queries), []
    for block in blocks(noisy.log, asked, max_history):
        # No shared windows: they would ask at the time of an inserted event, where one comes next.
        scores = network.retrieve(asked.take(block).histories(noisy.log, max_history))
        removed = seen_pairs(log, queries.take(block), remove=log.meta.remove_history)
        ranks = ranks_of(scores, queries.target[block], removed)
        parts.append(Retrieved.of(ranks, top_items(scores, removed, settings.cutoffs[0]), scores))
    return Retrieved.joined(parts)


def judged(
    network: Ranker,
    log: EventLog,
    noises: Mapping[str, NoisyLog],
    queries: Queries,
    candidates: LabelledQueries,
    settings: Evaluate,
    *,
    max_history: int,
) -> list[Tables]:
    """Tables of retrieval and of ranking, whose models are the names of `noises`, CLEAN first."""
    found, chances = {}, {}
    for name, noisy in noises.items():
        found[name] = retrieved(network, log, noisy, queries, settings, max_history)
        chances[name] = ranking.score(
            network, noisy.log, noisy.asked(candidates), max_history=max_history, title=name
        )
    return [
        retrieval_tables("R2", log, queries, found, settings, main=CLEAN),
        ranking_tables("K1", log, candidates, chances, settings, main=CLEAN),
    ]


def of_noise(tables: Sequence[Tables], name: str) -> dict[str, Any]:
    """Values of the metrics with one noise, and with noise their falls with 95 % intervals."""
    values = {m: t.metrics[name][m] for t in tables for m in METRICS if m in t.metrics[name]}
    found = {"values": values}
    falls = {
        row.metric: {"value": row.difference, "low": row.low, "high": row.high}
        for table in tables
        for row in table.plots["differences"].itertuples()
        if row.against == name and row.metric in METRICS
    }
    for metric in falls.keys() & {*RELATIVE}:
        clean = tables[0].metrics[CLEAN][metric]
        falls[metric]["relative"] = falls[metric]["value"] / clean if clean else 0.0
    return found | ({"falls": {m: falls[m] for m in METRICS if m in falls}} if falls else {})


def over_dense(own: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, float | None]:
    """Masses and falls of one noise over those of the dense network.

    None where the dense network does not fall beyond chance: there is nothing to halve.
    """
    ratios: dict[str, float | None] = {}
    for name in ("candidates", "states"):
        if own["mass"]:
            ratios[f"mass, {name}"] = own["mass"][name] / dense["mass"][name]
    for metric, fall in own["falls"].items():
        kind = "relative" if metric in RELATIVE else "value"
        other = dense["falls"][metric]
        ratios[f"fall, {metric}"] = fall[kind] / other[kind] if other["low"] > 0 else None
    return ratios


def measure(folders: Sequence[Path], *, quick: bool) -> dict[str, Any]:
    """The figures of every cell, by MODEL/SEED and noise, and the numbers of what was asked.

    Raises:
        UserError: see `opened`.
    """
    log = opened(folders)
    settings = load_config(ROOT / "params.yaml").evaluate
    every_candidate = protocols.labelled(log, TEST)
    queries = some(protocols.next_item(log, TEST), QUICK_QUERIES if quick else QUERIES, settings)
    looked_at = some(every_candidate, QUICK_READ if quick else READ, settings)
    users = np.random.default_rng(settings.seed).permutation(np.unique(every_candidate.user))
    users = users[: QUICK_USERS if quick else USERS]
    candidates = every_candidate.take(np.isin(every_candidate.user, users))
    asking = np.unique(np.concatenate([queries.user, looked_at.user, users]))
    noises = {f"{share:.0%}": with_noise(log, asking, share) for share in SHARES}
    every = {CLEAN: with_noise(log, asking, 0.0), **noises}
    models: dict[str, dict[str, Any]] = {}
    dense = None
    for folder in folders:
        name = "/".join(folder.resolve().parts[-2:])
        scorer = Scorer.load(Workspace(folder).finetuned)
        longest = scorer.max_history
        tables = judged(scorer, log, every, queries, candidates, settings, max_history=longest)
        models[name] = {noise: of_noise(tables, noise) for noise in every}
        for noise, noisy in noises.items():
            models[name][noise]["mass"] = masses(scorer, noisy, looked_at, longest)
        if dense is None and isinstance(scorer.model, HSTU):
            dense = name
    for name in models.keys() - {dense} if dense else ():
        for noise in noises:
            models[name][noise]["over_dense"] = over_dense(
                models[name][noise], models[dense][noise]
            )
    return {
        "queries": len(queries),
        "users_with_candidates": len(users),
        "candidates": len(candidates.label),
        "candidates_looked_at": len(looked_at.label),
        "dense": dense,
        "models": rounded(models),
    }


def opened(folders: Sequence[Path]) -> EventLog:
    """The log that the cells share.

    Raises:
        UserError: a folder's log was split otherwise, or is not that of the others.
    """
    logs = [EventLog.open(Workspace(folder.resolve().parents[1]).arrays) for folder in folders]
    log = logs[0]
    for folder, other in zip(folders, logs, strict=True):
        if other.meta.split != "global-time":
            raise UserError(f"{folder}: found split {other.meta.split}, expected global-time")
        if not np.array_equal(other.item, log.item):
            raise UserError(f"{folder}: its log is not that of {folders[0]}: measure them apart")
    return log


def some(queries: Asked, most: int, settings: Evaluate) -> Asked:
    """A seeded sample."""
    return protocols.sampled(queries, settings.model_copy(update={"tuning_queries": most}))


def rounded(figures: Any) -> Any:
    """The figures with four decimals."""
    if isinstance(figures, dict):
        return {name: rounded(value) for name, value in figures.items()}
    return None if figures is None else round(float(figures), 4)


def measure_cells(text: str, script: str, measure: Callable[..., dict[str, Any]]) -> None:
    """The command of a script that measures cells; `text` is its help."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(asked.folders, quick=asked.quick)
    if asked.out:
        write_measured(asked.out, script, figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    run(partial(measure_cells, __doc__, "noise.py", measure))
