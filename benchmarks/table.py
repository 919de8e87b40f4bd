"""The README's tables, from the committed results: python benchmarks/table.py [--write]

Reads benchmarks/results/*.json. Prints Markdown; with --write it replaces what stands between the
markers in README.md. A model with several seeds shows mean and spread, with one seed a single run.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hpgr.evaluation.headline import model_of
from hpgr.metrics import best_value, metric_label
from hpgr.runtime import read_json, write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKERS = ("<!-- table -->", "<!-- end of table -->")
BASKETS = {
    "recall@10": "recall@10", "ndcg@10": "NDCG@10", "recall@20": "recall@20", "ndcg@20": "NDCG@20",
}  # fmt: skip
COLUMNS = {
    "R1": {"hr@10": "HR@10", "ndcg@10": "NDCG@10", "hr@50": "HR@50", "hr@200": "HR@200"},
    "R2": {"hr@10": "HR@10", "ndcg@10": "NDCG@10", "hr@50": "HR@50", "hr@200": "HR@200"},
    "B1": BASKETS,
    "B1_new_items": BASKETS,
    "K1": {
        "auc": "AUC",
        "gauc": "GAUC",
        "log_loss": "log loss",
        "calibration_error": "calibration error",
    },
    "I1": {"gauc": "GAUC", "ndcg@5": "NDCG@5", "ndcg@10": "NDCG@10", "mrr": "MRR", "auc": "AUC"},
}
TITLES = {
    "R1": "Next item, leave-one-out (R1), test, whole catalogue",
    "R2": "Next item, global time split (R2), test, whole catalogue",
    "B1": "Next basket, global time split (B1), test, whole catalogue",
    "B1_new_items": "Next basket, global time split (B1), test, new items alone",
    "K1": "Ranking, global time split (K1), test, label rating >= 4",
    "I1": "Ranking inside an impression, global time split (I1), test",
}
# Metrics in which a model is compared with the best other one, query by query.
COMPARED = {
    "R1": ("hr@10", "ndcg@10"),
    "R2": ("hr@10", "ndcg@10"),
    "B1": ("recall@10", "ndcg@10"),
    "B1_new_items": ("recall@10", "ndcg@10"),
    "K1": ("auc", "gauc"),
}
# Others stand in docs/ablations.md.
HEADLINES = (
    "hpgr", "hpgr-no-successors", "hpgr-short", "hpgr-quick", "hstu", "hstu-large", "hstu-plain",
    "hstu-readout", "sasrec", "esasrec", "mtgr", "mtgr-residual", "mtgr-fold-in",
    "mtgr-successors", "mtgr-readout",
)  # fmt: skip
NAMES = {
    "hpgr": "**HPGR**",
    "hpgr-no-successors": "**HPGR**, without successors",
    "hpgr-short": "**HPGR**, profile ranking-short",
    "hpgr-short_then_rank": "HPGR, top 50 as served",
    "hpgr-short_next_item": "HPGR, as next item",
    "hpgr-short_with_position": "HPGR, with positions",
    "hpgr_then_rank": "HPGR, top 50 as served",
    "hpgr_next_item": "HPGR, as next item",
    "hpgr_with_position": "HPGR, with positions",
    "hpgr-quick": "**HPGR**, profile quick",
    "hpgr-quick_then_rank": "HPGR, top 50 as served",
    "hpgr-quick_next_item": "HPGR, as next item",
    "hpgr-quick_with_position": "HPGR, with positions",
    "hstu": "HSTU",
    "hstu-large": "HSTU-large",
    "hstu-plain": "HSTU, trained as HPGR",
    "hstu-readout": "HSTU with HPGR's read-out",
    "sasrec": "SASRec",
    "esasrec": "eSASRec",
    "mtgr": "MTGR",
    "mtgr-residual": "MTGR with our cross features",
    "mtgr-fold-in": "MTGR with our cross features and fold-in",
    "mtgr-successors": "MTGR with HPGR's successors",
    "mtgr-readout": "MTGR with HPGR's read-out",
    "transitions": "transitions, decayed",
    "ease": "EASE, recency-weighted",
    "popularity": "popularity",
    "recency": "recent popularity",
    "personal_frequency": "personal frequency, decayed",
    "boosted_trees": "gradient-boosted trees",
    "boosted_trees_with_position": "gradient-boosted trees, with positions",
    "fold_in": "linear-Gaussian fold-in",
    "position": "position as shown",
    "item_plus_position": "item plus position",
    "item_plus_user_mean": "item plus user mean",
    "item_mean": "item mean",
    "user_mean": "user mean",
}


def main() -> None:
    """Print the tables or write them into the README."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    text = tables()
    if parser.parse_args().write:
        readme = ROOT / "README.md"
        write_text(readme, between_markers(readme.read_text(encoding="utf-8"), text))
    else:
        print(text, end="")


def between_markers(page: str, text: str) -> str:
    """The page with `text` in place of what stands between its markers."""
    before, _, rest = page.partition(MARKERS[0])
    return f"{before}{MARKERS[0]}\n{text}{MARKERS[1]}{rest.partition(MARKERS[1])[2]}"


class Row(NamedTuple):
    """One model: its metrics, once a seed, and the results of its trainings, none of a baseline."""

    name: str
    metrics: list[dict[str, float]]
    trained: list[dict[str, Any]]

    @property
    def label(self) -> str:
        """Its name in a table, in Markdown; `quick` is a profile of leave-one-out alone."""
        found = NAMES.get(self.name, self.name)
        of_time = self.trained and self.trained[-1].get("split") == "global-time"
        if self.name == "hpgr" and self.trained and not of_time:
            return f"{found}, profile full"
        return found.removesuffix(", profile quick") if of_time else found

    def values(self, column: str) -> list[float]:
        """Its values of a metric."""
        return [run[column] for run in self.metrics if column in run]


def tables() -> str:
    """All tables, one after the other."""
    return "\n".join(
        table(
            f"{TITLES[protocol]}, {dataset}",
            COLUMNS[protocol],
            judged,
            lead_of_best(protocol, dataset, judged),
        )
        for protocol, dataset, judged in headlines()
    )


def headlines() -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Protocol, data set and results of each table."""
    results = [read_json(path) for path in sorted(RESULTS.glob("*.json"))]
    results = [r for r in results if r.get("model") in HEADLINES]
    for protocol in COLUMNS:
        own = [r for r in results if r.get("protocol") == protocol]
        for dataset in sorted({r["dataset"] for r in own}):
            yield protocol, dataset, [r for r in own if r["dataset"] == dataset]


def spans(results: Iterable[dict[str, Any]], key: str) -> str:
    """The values that results have of a key, each once: not all need be of one machine or day."""
    return " and ".join(sorted({result[key] for result in results}))


def rows(columns: Mapping[str, str], results: list[dict[str, Any]]) -> list[Row]:
    """The models of one protocol and data set and the baselines beside them, the best one last."""
    metrics: dict[str, list[dict[str, float]]] = {}
    key = next(iter(columns))
    for result in results:
        metrics.setdefault(result["model"], []).append(result["metrics"])
    for result in results:
        for other, own in result["same_queries"].items():
            stem = model_of(other)
            if stem != other and result["model"].startswith(stem):  # another order of the model
                metrics.setdefault(result["model"] + other.removeprefix(stem), []).append(own)
            elif other not in metrics or own.get(key, 0.0) > metrics[other][0].get(key, 0.0):
                # Baselines have no seed. Trees that learnt from more events are the better ones.
                metrics[other] = [own]
    found = [Row(n, own, [r for r in results if r["model"] == n]) for n, own in metrics.items()]
    return sorted(found, key=lambda row: mean(row.values(key)) or 0.0)


def best_other(row: Row, metric: str, found: Iterable[Row]) -> Row | None:
    """The model with the best mean but for the row's own; forms of HPGR are none to each other."""
    own = ("hpgr",) if row.name.startswith("hpgr") else ()
    others = [
        r
        for r in found
        if r.values(metric)
        and r.name == model_of(r.name) != row.name
        and not r.name.startswith(own)
    ]
    return max(others, key=lambda other: mean(other.values(metric)) or 0.0, default=None)


def against_best(
    protocol: str, dataset: str, results: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The paired comparisons of a table, as `against_best.py` wrote them.

    Left out are those of results that were replaced since: the best other model is another one
    now, or the seeds' results give another difference.
    """
    found = rows(COLUMNS[protocol], results)
    by_name = {row.name: row for row in found}
    current = []
    for path in sorted(RESULTS.glob("paired-*.json")):
        record = read_json(path)
        for one in record["comparisons"]:
            own = by_name.get(one["model"])
            if (record["dataset"], one["protocol"]) != (dataset, protocol) or own is None:
                continue
            best = best_other(own, one["metric"], found)
            if best is None or best.name != one["against"]:
                continue
            sides = ((own, one["seeds"]), (best, one["against_seeds"]))
            own_mean, other = (mean(of_seeds(row, one["metric"], seeds)) for row, seeds in sides)
            if own_mean is None or other is None:
                continue
            if abs(own_mean - other - one["difference"]) < 2e-5:
                current.append(one)
    return current


def of_seeds(row: Row, metric: str, seeds: list[int]) -> list[float]:
    """A metric of some seeds' results; a baseline has no seed."""
    if not row.trained:
        return row.values(metric)
    return [r["metrics"][metric] for r in row.trained if r["seed"] in seeds]


def mean(values: list[float]) -> float | None:
    """None without values."""
    return statistics.fmean(values) if values else None


def best_means(columns: Iterable[str], found: list[Row]) -> dict[str, float]:
    """The best mean of each metric."""
    means = {c: [mean(row.values(c)) for row in found] for c in columns}
    return {c: best_value(c, (m for m in own if m is not None)) for c, own in means.items()}


def table(
    title: str, columns: dict[str, str], results: list[dict[str, Any]], lead: str = ""
) -> str:
    """One protocol and data set: trained models with their cost, then the baselines beside them.

    `lead` is a sentence to stand below.
    """
    found = rows(columns, results)
    best = best_means(columns, found)
    lines = [
        f"{title}:\n",
        f"| model | {' | '.join(columns.values())} | parameters | best / trained |",
        "|---|" + "---|" * (len(columns) + 2),
    ]
    for row in found:
        cells = [cell(row.values(c), best[c]) for c in columns]
        cost = ["", ""]
        if row.trained:
            cost = [f"{row.trained[-1]['num_params'] / 1000:.0f} k", length(row.trained[-1])]
        lines.append(f"| {' | '.join([row.label, *cells, *cost])} |")
    seeds = {
        len([r for r in results if r["model"] == name]) for name in {r["model"] for r in results}
    }
    note = "one seed each: a note, not yet a result"
    if seeds != {1}:
        counts = " or ".join(map(str, sorted(seeds)))
        note = f"seeds of a model: {counts}, mean ± standard deviation"
    if lead:
        note = f"{lead}\n\n{note}"
    lines.append(
        f"\n{note}; {spans(results, 'machine')}; {spans(results, 'date')}; "
        "the commit and the command of each row stand in its file in "
        "[benchmarks/results](benchmarks/results).\n"
    )
    return "\n".join(lines)


def lead_of_best(protocol: str, dataset: str, results: list[dict[str, Any]]) -> str:
    """The best model's lead over the next best in words, with its interval, where it was judged."""
    found = rows(COLUMNS[protocol], results)
    best, leads = best_means(COMPARED.get(protocol, ()), found), []
    compared = against_best(protocol, dataset, results)
    for one in sorted(compared, key=lambda one: [*best].index(one["metric"])):
        own = next(row for row in found if row.name == one["model"])
        if mean(own.values(one["metric"])) == best.get(one["metric"]):
            names = " over ".join(NAMES.get(one[side], one[side]) for side in ("model", "against"))
            low, high, difference = (
                f"{one[key]:+.4f}".replace("0.", ".") for key in ("low", "high", "difference")
            )
            leads.append(
                f"{difference} {metric_label(one['metric'])} ({low} to {high}) of "
                f"{names.replace('**', '')}, {seeds_of(one)}"
            )
    return f"Paired over users, with 95 % intervals: {'; '.join(leads)}." if leads else ""


def seeds_of(comparison: dict[str, Any]) -> str:
    """The seeds of both models, a baseline having none: seeds 0 1 / 0."""
    sides = (comparison["seeds"], comparison["against_seeds"])
    return f"seeds {' / '.join(' '.join(map(str, side)) for side in sides if side)}"


def length(result: dict[str, Any]) -> str:
    """At which step the best validation was, and how many were trained; epochs in older results."""
    if "best_epoch" in result:
        return f"epoch {result['best_epoch']} / {result['epochs']}"
    return f"step {result['best_step']:,} / {result['steps']:,}"


def cell(values: list[float], best: float) -> str:
    """Mean, with the spread where there are several seeds; the best mean in bold."""
    if not values:
        return ""
    middle = statistics.fmean(values)
    text = f"{middle:.4f}".removeprefix("0")
    if middle == best:
        text = f"**{text}**"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.4f}".replace("0.", ".")
    return text


if __name__ == "__main__":
    main()
