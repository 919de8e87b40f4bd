"""Goals that the committed results are held against, for `figures.py` and `page.py`.

Those of attention and training are ratios of two measurements of one run on one machine. Reads
benchmarks/results/*.json, writes nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from benchmarks.table import NAMES, RESULTS
from hpgr.metrics import metric_label
from hpgr.runtime import read_json


class Goal(NamedTuple):
    """A bound on a figure of a results file: at least, or with `most` at most.

    `place` are the keys that lead to the figure.
    """

    subject: str
    file: str
    place: tuple[str, ...]
    bound: float
    most: bool = False


class Standing(NamedTuple):
    """A goal beside what was found."""

    subject: str
    file: str
    found: float
    bound: float
    most: bool

    @property
    def reached(self) -> bool:
        """True if the figure keeps the bound."""
        return self.found <= self.bound if self.most else self.found >= self.bound


GOALS = {
    goal.place[-1]: goal
    for goal in (
        Goal(
            "sparse attention, 4,096 events: times as fast as the whole matrix",
            "attention", ("ratios", "ratio_vs_eager_4096"), 10,
        ),
        Goal(
            "sparse attention, 4,096 events: times as fast as every causal tile",
            "attention", ("ratios", "ratio_vs_best_dense_4096"), 2.5,
        ),
        Goal(
            "sparse attention, 8,192 events: times as fast as every causal tile",
            "attention", ("ratios", "ratio_vs_best_dense_8192"), 4.5,
        ),
        Goal(
            "sparse attention: time at 8,192 events over that at 2,048",
            "attention", ("ratios", "t8192_over_t2048"), 1.25, most=True,
        ),
        Goal(
            "sparse attention, 4,096 events: peak memory over the whole matrix's",
            "attention", ("ratios", "memory_ratio_4096"), 0.1, most=True,
        ),
        Goal(
            "sparse attention, 4,096 events: share of selection",
            "attention", ("ratios", "selection_share"), 0.1, most=True,
        ),
        Goal(
            "training: HSTU over RecTools' HSTU, targets a second",
            "training", ("figures", "ratio_vs_rectools_fast"), 2,
        ),
        Goal(
            "training: HPGR over HSTU, targets a second",
            "training", ("figures", "hpgr_over_hstu"), 0.6,
        ),
        Goal(
            "anchors of a user's random candidates in common",
            "mechanism", ("figures", "overlap_random"), 0.3, most=True,
        ),
        Goal(
            "without anchors: fall of AUC",
            "mechanism", ("figures", "auc_drop_no_anchors"), 0.003,
        ),
        Goal(
            "without anchors: fall of NDCG@10, relative",
            "mechanism", ("figures", "ndcg_drop_no_anchors_relative"), 0.02,
        ),
        Goal(
            "planted opinions: anchors that are the event with the opinion",
            "mechanism", ("figures", "planted_recall"), 0.9,
        ),
        Goal("planted opinions: AUC", "mechanism", ("figures", "planted_auc"), 0.9),
        Goal(
            "an item's reasons removed: fall of its score over that without as many others",
            "mechanism", ("figures", "deletion_ratio"), 3,
        ),
        Goal(
            "served order: NDCG@10 over retrieval's",
            "mechanism", ("figures", "served_over_retrieval_ndcg"), 1,
        ),
        Goal("recommend-all, users a second", "scoring", ("figures", "users_per_s_ml1m"), 2000),
        Goal("serving, 8 clients: answers a second", "serving", ("figures", "rps_8"), 400),
        Goal(
            "serving, 8 clients: 99 of 100 within, ms",
            "serving", ("figures", "p99_ms_8"), 20, most=True,
        ),
        Goal(
            "serving, 64 clients: 99 of 100 within, ms",
            "serving", ("figures", "p99_ms_64"), 150, most=True,
        ),
        Goal(
            "validate 20 million events, s",
            "data", ("figures", "validate_s_20m"), 30, most=True,
        ),
        Goal(
            "sessionize 20 million events, s",
            "data", ("figures", "sessionize_s_20m"), 25, most=True,
        ),
        Goal(
            "sessionize 100 million events, peak memory in MB",
            "data_100m", ("figures", "sessionize_mb"), 4096, most=True,
        ),
    )
}  # fmt: skip
# Of dense HSTU's, at most, with noise in histories.
NOISE = {"mass, candidates": 0.6, "fall, ndcg@10": 0.5, "fall, hr@10": 0.5, "fall, auc": 0.5,
         "fall, gauc": 0.5}  # fmt: skip
# AUC and GAUC of HPGR over those of these models, minus one, at least.
# MTGR with our features stands twice: with the user's posterior among them, and with the read-out.
RIVALS = {
    "boosted_trees": 0.0,
    "hstu-plain": 0.019,
    "mtgr": 0.015,
    "mtgr-fold-in": 0.005,
    "mtgr-readout": 0.005,
}
# R1, as RecTools publishes them: model to its profile and what it stands beside.
PUBLISHED = {
    "hpgr-quick": ("quick", "HSTU", {"hr@10": 0.3227, "ndcg@10": 0.1879}),
    "hpgr": ("full", "HSTU-large", {"hr@10": 0.3642, "ndcg@10": 0.2164}),
}

# AUC of the best model of ReChorus' own table (SAM) on its task.
RECHORUS_AUC = 0.7919


def standings() -> Iterator[Standing]:
    """Every goal with a committed result."""
    for goal in GOALS.values():
        found: Any = read_json(RESULTS / f"{goal.file}.json")
        for key in goal.place:
            found = found[key]
        yield Standing(goal.subject, goal.file, found, goal.bound, goal.most)
    noise = RESULTS / "noise.json"
    if noise.is_file():
        yield from of_noise(read_json(noise)["figures"]["models"])
    yield from of_models()


def of_models() -> Iterator[Standing]:
    """HPGR on ML-1M, the mean over its seeds, beside other models."""
    every = [read_json(file) for file in sorted(RESULTS.glob("K1-ml-1m-*.json"))]
    own = [file for file in every if file["model"] == "hpgr"]
    for (rival, bound), metric in product(RIVALS.items(), ("auc", "gauc")):
        rows = [file["metrics"][metric] for file in every if file["model"] == rival]
        # A simple model stands beside every network, here with more events than there.
        rows = rows or [max(file["same_queries"][rival][metric] for file in every)]
        ratio = statistics.fmean(file["metrics"][metric] for file in own) / statistics.fmean(rows)
        subject = f"ranking on ML-1M: {metric_label(metric)} over that of {NAMES[rival]}, relative"
        yield Standing(subject, "K1-ml-1m-hpgr-0", ratio - 1, bound, most=False)
    for model, (profile, rival, bounds) in PUBLISHED.items():
        files = sorted(RESULTS.glob(f"R1-ml-1m-{model}-[0-9].json"))
        for metric, bound in bounds.items() if files else ():
            subject = (
                f"next item on ML-1M, profile {profile}: {metric_label(metric)} beside {rival}"
            )
            found = statistics.fmean(read_json(file)["metrics"][metric] for file in files)
            yield Standing(subject, files[0].stem, found, bound, most=False)
    if files := sorted(RESULTS.glob("K1-rechorus-ml-1m-hpgr-short-[0-9].json")):
        found = statistics.fmean(read_json(file)["metrics"]["auc"] for file in files)
        subject = "ranking on ReChorus' task of ML-1M: AUC beside the best of its own table"
        yield Standing(subject, files[0].stem, found, RECHORUS_AUC, most=False)


def of_noise(models: dict[str, Any]) -> Iterator[Standing]:
    """HPGR as a whole, the mean over seeds, by share of noise; without what dense HSTU kept."""
    whole = [found for name, found in models.items() if name.partition("/")[0] == "hpgr"]
    for share in list(whole[0])[1:] if whole else ():
        for ratio, bound in NOISE.items():
            values = [found[share].get("over_dense", {}).get(ratio) for found in whole]
            if None not in values:
                subject = f"{share.replace('%', ' %')} noise: {ratio}, over dense HSTU's"
                yield Standing(subject, "noise", statistics.fmean(values), bound, most=True)
