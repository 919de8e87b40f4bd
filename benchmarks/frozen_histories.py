"""Orders of the simple models with histories up to the candidate's second, and up to validation.

    python benchmarks/frozen_histories.py FOLDER... [--out FILE]

A model that learns from the events between a user's candidates is judged too low by GAUC where a
user has few: after a like the rest of them hold one like fewer than the user's share promises. The
user mean, which says nothing of items, shows how much: its GAUC is .5 where nothing was learned in
between. Reads params.yaml here and artifacts/sessions/ below each FOLDER, which is
benchmarks/cells/DATASET/global-time. Trees, which take minutes, are left out. Prints a Markdown
table a log. The test split plays no part.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.results_file import write_measured
from hpgr.config import Evaluate, load_config
from hpgr.data.log import TRAIN, VALIDATION, EventLog
from hpgr.evaluation import protocols
from hpgr.evaluation.headline import markdown_table
from hpgr.evaluation.judged import open_log
from hpgr.evaluation.protocols import LabelledQueries
from hpgr.evaluation.simple_rankers import SimpleRankers
from hpgr.metrics import auc, gauc
from hpgr.workspace import Workspace


def frozen(log: EventLog, queries: LabelledQueries) -> LabelledQueries:
    """The same queries, which see their users' training events and no later one."""
    trained = np.append(0, np.cumsum(np.asarray(log.split) == TRAIN))
    first, last = log.user_offsets[:-1], log.user_offsets[1:]
    end = first + trained[last] - trained[first]  # training events come first
    return replace(queries, end=np.minimum(queries.end, end[queries.user]))


def measure(log: EventLog, settings: Evaluate) -> dict[str, dict[str, float]]:
    """AUC and GAUC of every model on all validation candidates, both ways."""
    simple = SimpleRankers(log, settings.model_copy(update={"tree_events": 0}))
    candidates = protocols.labelled(log, VALIDATION)
    user, label = candidates.candidate_user(), candidates.label
    figures: dict[str, dict[str, float]] = {}
    for suffix, queries in (("", candidates), ("_frozen", frozen(log, candidates))):
        for name, score in simple.probabilities(queries).items():
            areas = {"auc": auc(label, score), "gauc": gauc(user, label, score)}
            found = figures.setdefault(name, {})
            found |= {m + suffix: round(value, 4) for m, value in areas.items() if value}
    return figures


def main() -> None:
    """Measure every log and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    settings = load_config(Path("params.yaml")).evaluate
    figures = {}
    for folder in asked.folders:
        log = open_log(Workspace(folder))
        user = log.user_of_event()[np.asarray(log.split) == VALIDATION]
        per_user = float(np.median(np.unique(user, return_counts=True)[1]))
        found = measure(log, settings)
        name = folder.resolve().parent.name
        figures[name] = {"median_candidates_a_user": per_user, "models": found}
        print(f"{name}, {per_user:g} candidates a user (median)", markdown_table(found), sep="\n")
    if asked.out:
        write_measured(asked.out, "frozen_histories.py", figures)


if __name__ == "__main__":
    main()
