"""Pictures of the models of the benchmark, for `page`: parts, slices, learning curves, sensitivity.

Drawn from benchmarks/results/*.json; what has no result gives no picture. Writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import ablations, sensitivity, table
from benchmarks.table import NAMES, TITLES
from hpgr.evaluation.figures import INK, MAIN, QUIET, SECOND, canvas
from hpgr.evaluation.headline import model_of
from hpgr.metrics import metric_label

SLICED = {"R1": "ndcg@10", "R2": "ndcg@10", "B1": "ndcg@10", "K1": "auc", "I1": "gauc"}
FAMILIES = {
    "history": "events in the history",
    "place": "place in its session",
    "known": "user in training",
}
RIVALS = 3  # beside HPGR in a picture of slices
LEAST = 100  # queries or candidates of a slice that is drawn
OTHERS = (  # in the order of the trained models but HPGR's, and of the others
    "#7b8794", "#a487b0", "#6b4c9a", "#8c6d46", "#b59a6a", "#1f5f8b", "#5a9e7c", "#26303a",
)  # fmt: skip


class Drawing(NamedTuple):
    """A picture: its name in files, its title, a sentence and what draws it."""

    name: str
    title: str
    note: str
    draw: Callable[[], Figure]


def plain(model: str) -> str:
    """A model's name without the marks of Markdown."""
    return NAMES.get(model, model).replace("**", "")


def parts() -> Iterator[Drawing]:
    """A picture of each comparison of models without a part."""
    for protocol, dataset, name, whole, runs in ablations.comparisons():
        yield Drawing(
            f"parts-{protocol}-{dataset}-{name}",
            f"{TITLES[protocol]}, {dataset}",
            f"The whole: {plain(name)}, seeds: {len(whole)}.",
            partial(part_bars, protocol, whole, runs),
        )


def slices() -> Iterator[Drawing]:
    """A picture of each table whose results hold slices: HPGR and its best rivals."""
    for protocol, dataset, results in table.headlines():
        sliced = [result for result in results if "slices" in result]
        if protocol in SLICED and any(r["model"].startswith("hpgr") for r in sliced):
            metric = SLICED[protocol]
            counted = "candidates" if protocol == "K1" else "queries"
            seeds = "; ".join(
                f"{plain(model)}: {' '.join(str(r['seed']) for r in sliced if r['model'] == model)}"
                for model in dict.fromkeys(r["model"] for r in sliced)
            )
            yield Drawing(
                f"slices-{protocol}-{dataset}",
                f"{TITLES[protocol]}, {dataset}: {metric_label(metric)}",
                f"Below each slice the number of its {counted}; those of fewer than {LEAST} are "
                "left out. Each panel has a scale of its own. Mean over the seeds whose slices are "
                f"recorded. {seeds}.",
                partial(slice_lines, metric, results),
            )


def curves() -> Iterator[Drawing]:
    """A picture of each table whose results hold curves: validation by step."""
    for protocol, dataset, results in table.headlines():
        traced = [result for result in results if "curve" in result]
        columns = ablations.COLUMNS.get(protocol, {})
        columns = {m: name for m, name in columns.items() if any(m in r["curve"] for r in traced)}
        if columns:
            yield Drawing(
                f"curves-{protocol}-{dataset}",
                f"{TITLES[protocol].replace(', test', ', validation')}, {dataset}",
                "A line a seed; the dot is the step whose weights were kept.",
                partial(curve_lines, columns, traced),
            )


def settings() -> Iterator[Drawing]:
    """A picture of each number that a model of the ablations changes alone."""
    for protocol, dataset, name, own, points in sensitivity.varied():
        yield Drawing(
            f"sensitivity-{protocol}-{dataset}-{name.replace('.', '-')}",
            f"{name}: {TITLES[protocol]}, {dataset}",
            f"All else equal; the whole has {own:g}. Means, rings are single seeds.",
            partial(setting_points, protocol, name, own, points),
        )


def part_bars(protocol: str, whole: ablations.Runs, runs: dict[str, ablations.Runs]) -> Figure:
    """Distance of each model from the whole: the mean as a bar, every seed as a ring."""
    columns = ablations.COLUMNS[protocol]
    figure, axes = canvas(9.0, 1.0 + 0.34 * len(runs), panels=len(columns))
    for ax, (metric, title) in zip(axes, columns.items(), strict=True):
        ends = [0.0]
        for place, own in enumerate(runs.values()):
            values = ablations.distances(metric, whole, own)
            middle = table.mean(values) or 0.0
            ax.barh(place, middle, height=0.6, color=MAIN if middle < 0 else QUIET[2])
            ax.plot(values, [place] * len(values), "o", mfc="white", mec=INK, markersize=4)
            text = ablations.spread(values, signed=True)
            ax.annotate(
                text, (max(0.0, *values), place), (6, 0), textcoords="offset points",
                va="center", fontsize=8, color=INK,
            )  # fmt: skip
            ends += values
        ax.axvline(0, color=INK, linewidth=1)
        ax.set_yticks(range(len(runs)), [words(name) for name in runs])
        ax.set_ylim(len(runs) - 0.4, -0.6)
        width = (max(ends) - min(ends)) or 1.0
        ax.set_xlim(min(ends) - 0.05 * width, max(ends) + 0.35 * width)  # room for the numbers
        ax.locator_params(axis="x", nbins=4)
        ax.grid(visible=False, axis="y")
        ax.set_title(f"{title}, distance from the whole", fontsize=10, color=INK, loc="left")
        if ax is not axes[0]:
            ax.set_yticklabels([])
    return figure


def slice_lines(metric: str, results: list[dict[str, Any]]) -> Figure:
    """A panel a family of slices, a line a model: HPGR and its best rivals."""
    found = by_slice(metric, results)
    counts = sizes(results)
    shown = compared(metric, results, [*found])
    panels = {
        family: [name for name in counts if name.partition(":")[0] == family and
                 counts[name] >= LEAST]
        for family in FAMILIES
    }  # fmt: skip
    panels = {family: names for family, names in panels.items() if len(names) > 1}
    figure, axes = canvas(11.5, 3.6, panels=len(panels))
    for ax, (family, names) in zip(axes, panels.items(), strict=True):
        for model in shown:
            values = [found[model].get(name, math.nan) for name in names]
            ax.plot(values, marker="o", markersize=4.5, label=words(model), **style(model))
        ax.set_xticks(range(len(names)), [f"{short(n)}\n{counts[n]:,}" for n in names], fontsize=7)
        ax.margins(x=0.12)
        ax.set_title(FAMILIES[family], fontsize=10, color=INK, loc="left")
    legend(figure, axes[0])
    return figure


def by_slice(metric: str, results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Model to slice to the mean over the results that hold it; a baseline's from the first."""
    values: dict[str, dict[str, list[float]]] = {}
    for result in results:
        sliced = result.get("slices", {})
        for model, own in sliced.get(metric, {}).items():
            if model != result["model"] and model in values:
                continue
            for name, value in zip(sliced["slice"], own, strict=True):
                if value is not None:
                    values.setdefault(model, {}).setdefault(name, []).append(value)
    return {m: {n: float(np.mean(v)) for n, v in own.items()} for m, own in values.items()}


def sizes(results: list[dict[str, Any]]) -> dict[str, int]:
    """Slice to its number of queries, from the first result that holds slices."""
    first = next(result["slices"] for result in results if "slices" in result)
    return dict(zip(first["slice"], first["queries"], strict=True))


def compared(metric: str, results: list[dict[str, Any]], sliced: list[str]) -> list[str]:
    """HPGR's models with slices, and as many RIVALS with slices as stand highest in the table."""
    protocol = results[0]["protocol"]
    rows = table.rows(table.COLUMNS[protocol], results)
    rows = [row for row in rows if row.name in sliced and row.name == model_of(row.name)]
    rows.sort(key=lambda row: table.mean(row.values(metric)) or 0.0, reverse=True)
    own = [row.name for row in rows if row.name.startswith("hpgr")]
    return own + [row.name for row in rows if row.name not in own][:RIVALS]


def curve_lines(columns: Mapping[str, str], results: list[dict[str, Any]]) -> Figure:
    """A panel a metric, a line a result."""
    figure, axes = canvas(11.0, 4.2, panels=len(columns))
    for ax, (metric, title) in zip(axes, columns.items(), strict=True):
        drawn = set()
        for result in results:
            model, curve = result["model"], result["curve"]
            if metric not in curve:
                continue
            label = None if model in drawn else words(model)
            drawn.add(model)
            ax.plot(curve["step"], curve[metric], label=label, **style(model))
            if result["best_step"] in curve["step"]:
                best = curve["step"].index(result["best_step"])
                point = curve["step"][best], curve[metric][best]
                ax.plot(*point, "o", color=style(model)["color"], markersize=5.5)
        ax.set_xlabel("step", color=INK)
        ax.set_title(f"{title}, validation", fontsize=10, color=INK, loc="left")
    legend(figure, axes[0])
    return figure


def setting_points(protocol: str, name: str, own: float, points: sensitivity.Points) -> Figure:
    """A panel a metric: the mean by value of the setting, single seeds as rings."""
    columns = ablations.COLUMNS[protocol]
    figure, axes = canvas(9.0, 2.9, panels=len(columns))
    for ax, (metric, title) in zip(axes, columns.items(), strict=True):
        values = [[run["metrics"][metric] for run in runs.values()] for runs in points.values()]
        places = range(len(points))  # evenly: values may lie decades apart
        ax.plot(places, [np.mean(v) for v in values], color=MAIN, linewidth=1.8, marker="o")
        for place, of_value in zip(places, values, strict=True):
            ax.plot([place] * len(of_value), of_value, "o", mfc="white", mec=INK, markersize=4)
        ax.set_xticks(places, [f"{v:g}" + " (whole)" * (v == own) for v in points])
        ax.set_xlabel(name, color=INK)
        ax.margins(x=0.2, y=0.25)
        ax.set_title(title, fontsize=10, color=INK, loc="left")
    return figure


def style(model: str) -> dict[str, Any]:
    """Colour and line of a model, the same in every picture; what was not trained is dashed."""
    if model.startswith("hpgr"):
        return {
            "color": SECOND if model in ("hpgr-long", "hpgr-short") else MAIN,
            "linestyle": ":" if model == "hpgr-short" else "-",
            "linewidth": 2.2,
            "zorder": 3,
        }
    trained = [name for name in table.HEADLINES if not name.startswith("hpgr")]
    names = trained if model in trained else [name for name in NAMES if name not in trained]
    place = names.index(model) if model in names else len(names)
    line = "-" if model in trained else "--"
    return {"color": OTHERS[place % len(OTHERS)], "linewidth": 1.5, "linestyle": line}


def legend(figure: Figure, ax: Axes) -> None:
    """The names of a panel's lines below all panels."""
    handles, names = ax.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False,
        fontsize=9,
    )  # fmt: skip


def short(name: str) -> str:
    """A slice's name below an axis."""
    text = name.partition(": ")[2].partition(" (")[0].removesuffix(" events")
    for long, brief in (("first of its session", "first"), (" user", ""), ("more than", ">")):
        text = text.replace(long, brief)
    return text


def words(model: str) -> str:
    """A model's name in a picture, where a dollar would begin a formula."""
    return plain(model).replace("$", r"\$")
