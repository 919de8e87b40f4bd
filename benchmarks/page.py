"""One page of every committed result, and a shorter document of the models' ones.

    python -m benchmarks.page --out FILE     the page, as HTML
    python -m benchmarks.page --write        docs/benchmark.md and docs/images/benchmark-*.svg

Goals, headline tables with their cost, paired differences, the pictures of `model_figures`, noise,
speed, and every file of benchmarks/results/ as it is. Nothing is loaded from elsewhere and no
script runs. Means are those of `table.py`, differences those of `ablations.py`.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from benchmarks import figures, goals, model_figures, table
from benchmarks.model_figures import Drawing, plain
from benchmarks.table import RESULTS, TITLES
from hpgr.evaluation.headline import number, protocol_label, signed
from hpgr.metrics import metric_label
from hpgr.runtime import atomic_path, read_json, write_text
from hpgr.templates import rendered

PAGE = Path(__file__).with_suffix(".html.j2")
MARKDOWN = Path(__file__).with_suffix(".md.j2")
DOCUMENT = table.ROOT / "docs/benchmark.md"
SECTIONS = {  # by anchor: title, what it shows, pictures
    "parts": (
        "What each part is worth",
        "Each model was trained anew: HPGR without one part, or a baseline. Shown is its distance "
        "from the whole, seed by seed. Bars are means, rings single seeds. Left of zero it is "
        "worse than the whole.",
        model_figures.parts,
    ),
    "slices": (
        "By history, place in the session and user",
        "HPGR and its best rivals. A history is what a user did before the request; users whom "
        "training does not know are new.",
        model_figures.slices,
    ),
    "curves": (
        "Learning curves",
        "Validation by step of training, for the results that hold it.",
        model_figures.curves,
    ),
    "sensitivity": (
        "Sensitivity",
        "HPGR trained anew with one number changed, on test.",
        model_figures.settings,
    ),
}
NAMED = re.compile(r'(\bid="|href="#|url\(#)')  # a name inside an SVG, or what refers to one


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


def inline(name: str, draw: Callable[[], Figure]) -> Markup:
    """A picture as an element of the page; names inside it begin with its own."""
    buffer = io.BytesIO()
    figures.save(draw, buffer)
    svg = buffer.getvalue().decode()
    return Markup(NAMED.sub(rf"\g<1>{name}-", svg[svg.index("<svg") :]))


def drawn(drawings: Iterator[Drawing]) -> list[dict[str, Any]]:
    """Pictures with their titles, to stand in the page."""
    return [
        {"title": one.title, "note": one.note, "picture": inline(one.name, one.draw)}
        for one in drawings
    ]


def against_best() -> Iterator[list[str]]:
    """Each model's difference from the best other one of its table."""
    for protocol, dataset, results in table.headlines():
        for one in table.against_best(protocol, dataset, results):
            yield [
                f"{protocol_label(protocol)}, {dataset}",
                plain(one["model"]),
                plain(one["against"]),
                metric_label(one["metric"]),
                signed(one["difference"]),
                f"{signed(one['low'])} to {signed(one['high'])}",
                f"{one['p']:.3f}",
                table.seeds_of(one).removeprefix("seeds "),
            ]


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
    """Place and text of every value; a number as the file has it, a list of plain values as one."""
    if isinstance(value, dict) or (isinstance(value, list) and not is_flat(value)):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in entries:
            yield from leaves(one, f"{place} / {key}" if place else str(key))
    else:
        yield place, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_flat(values: list[Any]) -> bool:
    """True if no value holds others."""
    return not any(isinstance(value, dict | list) for value in values)


def page() -> str:
    """The whole page as HTML."""
    return rendered(
        PAGE,
        {"figure": lambda value: f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"},
        goals=[*goals.standings()],
        headlines=[headline(*one) for one in table.headlines()],
        against_best=[*against_best()],
        sections=[
            {"name": name, "title": title, "note": note, "drawings": drawings}
            for name, (title, note, draw) in SECTIONS.items()
            if (drawings := drawn(draw()))
        ],
        noise=noise(),
        paired=[*paired()],
        speed={name: inline(f"speed-{name}", draw) for name, draw in figures.PICTURES.items()},
        files=[*files()],
    )


def write_markdown() -> None:
    """Write docs/benchmark.md, and its pictures to docs/images/benchmark-*.svg."""
    sections = []
    for name, (title, note, draw) in SECTIONS.items():
        drawings = [*draw()]
        for one in drawings:
            with atomic_path(figures.IMAGES / f"benchmark-{one.name}.svg") as path:
                figures.save(one.draw, path)
        sections.append({"name": name, "title": title, "note": note, "drawings": drawings})
    text = rendered(
        MARKDOWN,
        {},
        headlines=[headline(*one) for one in table.headlines()],
        against_best=[*against_best()],
        sections=[section for section in sections if section["drawings"]],
    )
    write_text(DOCUMENT, text)


def main() -> None:
    """Write the page, the document, or both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page")
    parser.add_argument("--write", action="store_true", help="docs/benchmark.md and its pictures")
    options = parser.parse_args()
    if not (options.out or options.write):
        parser.error("found neither --out FILE nor --write, expected one of them or both")
    if options.out:
        write_text(options.out, page())
    if options.write:
        write_markdown()


if __name__ == "__main__":
    main()
