"""One page of every committed result: python -m benchmarks.page --out FILE

Goals, headline tables with their cost, what each part is worth, noise, paired differences, speed,
and every file of benchmarks/results/ as it is. Nothing is loaded from elsewhere and no script runs.
Means are those of `table.py`, differences those of `ablations.py`.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from benchmarks import ablations, figures, goals, table
from benchmarks.table import NAMES, RESULTS, TITLES
from hpgr.evaluation.figures import INK, MAIN, QUIET, canvas
from hpgr.evaluation.headline import number, signed
from hpgr.metrics import metric_label
from hpgr.runtime import read_json, write_text
from hpgr.templates import rendered

PAGE = Path(__file__).with_suffix(".html.j2")
NAMED = re.compile(r'(\bid="|href="#|url\(#)')  # a name inside an SVG, or what refers to one


def plain(model: str) -> str:
    """A model's name without the marks of Markdown."""
    return NAMES.get(model, model).replace("**", "")


def headline(protocol: str, dataset: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """One table: models down, metrics and what training cost across."""
    columns = table.COLUMNS[protocol]
    rows = table.rows(columns, results)
    best = table.best_means(columns, rows)
    return {
        "title": f"{TITLES[protocol]}, {dataset}",
        "columns": [*columns.values()],
        "rows": [
            {
                "name": row.label.replace("**", ""),
                "main": row.name.startswith("hpgr"),
                "cells": [table.cell(row.values(c), best[c]) for c in columns],
                "cost": cost(row.trained),
            }
            for row in rows
        ],
        "machine": table.spans(results, "machine"),
        "date": table.spans(results, "date"),
    }


def cost(trained: list[dict[str, Any]]) -> list[str]:
    """Seeds, parameters, seconds of training, events a second, steps; blank for a baseline."""
    if not trained:
        return [""] * 5
    seconds, speed = (
        table.mean([run[name] for run in trained]) or 0.0
        for name in ("train_seconds", "events_per_second")
    )
    return [
        str(len(trained)),
        f"{trained[-1]['num_params']:,}",
        f"{seconds:,.0f}",
        f"{speed:,.0f}",
        table.length(trained[-1]),
    ]


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
        ax.set_yticks(range(len(runs)), [plain(name).replace("$", r"\$") for name in runs])
        ax.set_ylim(len(runs) - 0.4, -0.6)
        width = (max(ends) - min(ends)) or 1.0
        ax.set_xlim(min(ends) - 0.05 * width, max(ends) + 0.35 * width)  # room for the numbers
        ax.locator_params(axis="x", nbins=4)
        ax.grid(visible=False, axis="y")
        ax.set_title(f"{title}, distance from the whole", fontsize=10, color=INK, loc="left")
        if ax is not axes[0]:
            ax.set_yticklabels([])
    return figure


def inline(name: str, draw: Callable[[], Figure]) -> Markup:
    """A picture as an element of the page; names inside it begin with its own."""
    buffer = io.BytesIO()
    figures.save(draw, buffer)
    svg = buffer.getvalue().decode()
    return Markup(NAMED.sub(rf"\g<1>{name}-", svg[svg.index("<svg") :]))


def parts() -> Iterator[dict[str, Any]]:
    """A picture of each comparison of models without a part."""
    for count, (protocol, dataset, whole, runs) in enumerate(ablations.comparisons()):
        yield {
            "title": f"{TITLES[protocol]}, {dataset}",
            "whole": plain(ablations.WHOLE[protocol]),
            "seeds": len(whole),
            "picture": inline(f"parts{count}", partial(part_bars, protocol, whole, runs)),
        }


def noise() -> dict[str, Any] | None:
    """Rows of falls and attention by share and model; None where no result is committed."""
    path = RESULTS / "noise.json"
    if not path.is_file():
        return None
    found = read_json(path)["figures"]
    first = next(iter(found["models"].values()))
    shares, metrics = list(first), [*first["clean"]["values"]]
    rows = []
    for share in shares[1:]:
        for name, by_share in found["models"].items():
            own = by_share[share]
            falls = [
                (signed(fall["value"]), f"{signed(fall['low'])} to {signed(fall['high'])}")
                for fall in (own["falls"][m] for m in metrics)
            ]
            mass = [number(own["mass"].get(n)) for n in ("share", "candidates", "states")]
            rows.append(
                {"share": share.replace("%", " %"), "model": name, "falls": falls, "mass": mass}
            )
    return {
        "counts": {n: v for n, v in found.items() if isinstance(v, int)},
        "metrics": [metric_label(m) for m in metrics],
        "rows": rows,
    }


def paired() -> Iterator[list[str]]:
    """The paired differences of small logs, on validation: HPGR minus its strongest rival."""
    for path in sorted(RESULTS.glob("small-*.json")):
        result = read_json(path)
        against, metric = result["validation"]["differences"], result["validation"]["metric"]
        rival = min(against, key=lambda name: against[name]["value"])
        own = against[rival]
        yield [
            path.stem,
            plain(rival),
            metric_label(metric),
            signed(own["value"]),
            f"{signed(own['low'])} to {signed(own['high'])}",
            f"{own['p']:.4f}",
        ]


def files() -> Iterator[dict[str, Any]]:
    """Every results file: its name and its content as places and values."""
    for path in sorted(RESULTS.glob("*.json")):
        yield {"name": path.name, "values": dict(leaves(read_json(path)))}


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Place and text of every value; a number as the file has it."""
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in entries:
            yield from leaves(one, f"{place} / {key}" if place else str(key))
    else:
        yield place, value if isinstance(value, str) else json.dumps(value)


def page() -> str:
    """The whole page as HTML."""
    return rendered(
        PAGE,
        {"figure": lambda value: f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"},
        goals=[*goals.standings()],
        headlines=[headline(*one) for one in table.headlines()],
        parts=[*parts()],
        noise=noise(),
        paired=[*paired()],
        speed={name: inline(f"speed-{name}", draw) for name, draw in figures.PICTURES.items()},
        files=[*files()],
    )


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    write_text(parser.parse_args().out, page())


if __name__ == "__main__":
    main()
