"""Orders inside each user's impressions, as the public contest on KuaiRand-Pure measures them.

    python benchmarks/within_users.py CELLFOLDER... [--out FILE]

A cell's folder is below benchmarks/cells/ and its evaluation judged rankings (K1). Two figures a
model: the mean AUC of users with both labels, each user counting once, and the mean NDCG@5 of all
users, 0 where a user has no positive. Published on that test split, with more to train on:
popularity .6308 / .5121, a factorisation machine .6610 / .5282; the best order has NDCG@5 .7289.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.results_file import write_measured
from hpgr.evaluation.headline import markdown_table
from hpgr.metrics import group_auc
from hpgr.workspace import Workspace

PLACES, PREFIX = 5, "probability_"


def within_users(user: np.ndarray, label: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """Return `user_auc` and `user_ndcg@5` of candidates; equal scores keep their order.

    Args:
        user: int [C].
        label: 0 or 1, [C].
        score: [C].
    """
    _, area, _ = group_auc(user, label, score)
    rows = pd.DataFrame({"user": user, "label": label, "score": score})
    rows = rows.sort_values(["user", "score"], ascending=[True, False], kind="stable")
    discount = 1 / np.log2(np.arange(PLACES) + 2)
    place = rows.groupby("user").cumcount()
    shown = rows[place < PLACES].assign(gain=discount[place[place < PLACES]])
    gained = (shown["label"] * shown["gain"]).groupby(shown["user"]).sum()
    positives = rows.groupby("user")["label"].sum().clip(upper=PLACES).astype(int)
    best = np.concatenate([[0.0], np.cumsum(discount)])[positives]
    ndcg = np.divide(gained.to_numpy(), best, out=np.zeros(len(best)), where=best > 0)
    return {"user_auc": float(area.mean()), f"user_ndcg@{PLACES}": float(ndcg.mean())}


def main() -> None:
    """Measure every model that the cells judged, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    figures = {}
    for folder in asked.folders:
        table = pd.read_parquet(Workspace(folder).evaluation / "candidates.parquet")
        user, label = (table[name].to_numpy() for name in ("user", "label"))
        for column in table.columns[table.columns.str.startswith(PREFIX)]:
            score = table[column].to_numpy()
            figures[column.removeprefix(PREFIX)] = within_users(user, label, score)
        figures["best order"] = within_users(user, label, label.astype(np.float64))
    if asked.out:
        write_measured(asked.out, "within_users.py", figures)
    print(markdown_table(figures))


if __name__ == "__main__":
    main()
