"""Goals that the committed results are held against, for `figures.py` and `page.py`.

Those of attention and training are ratios of two measurements of one run on one machine. Reads
benchmarks/results/*.json, writes nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.table import RESULTS
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
    )
}  # fmt: skip
# Of dense HSTU's, at most, with noise in histories.
NOISE = {"mass, candidates": 0.6, "fall, ndcg@10": 0.5, "fall, hr@10": 0.5, "fall, auc": 0.5,
         "fall, gauc": 0.5}  # fmt: skip


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


def of_noise(models: dict[str, Any]) -> Iterator[Standing]:
    """HPGR as a whole, the mean over seeds, by share of noise; without what dense HSTU kept."""
    whole = [found for name, found in models.items() if name.partition("/")[0] == "hpgr"]
    for share in list(whole[0])[1:] if whole else ():
        for ratio, bound in NOISE.items():
            values = [found[share].get("over_dense", {}).get(ratio) for found in whole]
            if None not in values:
                subject = f"{share.replace('%', ' %')} noise: {ratio}, over dense HSTU's"
                yield Standing(subject, "noise", statistics.fmean(values), bound, most=True)
