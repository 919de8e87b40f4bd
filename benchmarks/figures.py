"""The pictures of docs/performance.md, from the committed results: python benchmarks/figures.py.

Reads benchmarks/results/*.json, writes docs/images/speed-*.svg. Every picture shows a measurement
beside its peer or its limit, and the goal where there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.goals import GOALS  # noqa: E402
from hpgr.evaluation.figures import INK, MAIN, QUIET, SECOND, canvas  # noqa: E402
from hpgr.runtime import atomic_path, read_json  # noqa: E402

RESULTS, IMAGES = ROOT / "benchmarks/results", ROOT / "docs/images"
PEER, LIMIT = QUIET[0], QUIET[2]
Bar = tuple[str, float, str]  # name, value, colour


def result(name: str) -> dict[str, Any]:
    """A committed results file."""
    found: dict[str, Any] = read_json(RESULTS / f"{name}.json")
    return found


def bound(name: str) -> float:
    """The goal for a figure."""
    return GOALS[name].bound


def bars(ax: Axes, rows: list[Bar], title: str, goal: float | None = None) -> None:
    """Horizontal bars, the first on top, each with its value; a line where the goal is."""
    names, values, colours = zip(*rows, strict=True)
    places = range(len(rows))
    ax.barh(places, values, color=colours, height=0.62)
    ax.set_yticks(places, names)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    longest = max(*values, goal or 0)
    for place, value in zip(places, values, strict=True):
        ax.text(
            value + longest * 0.015,
            place,
            f"{value:,.3g}" if value < 1000 else f"{value:,.0f}",
            va="center",
            fontsize=9,
            color=INK,
        )
    if goal is not None:
        ax.axvline(goal, color=INK, linewidth=1, linestyle="--")
        title += f" (- - goal {goal:,g})"
    ax.set_xlim(0, longest * 1.18)
    ax.set_title(title, fontsize=10, color=INK, loc="left")


def attention() -> Figure:
    """Cost and memory of one attention layer by length, sparse beside dense."""
    found = result("attention")
    figure, (time, memory) = canvas(9, 3.4, panels=2)
    by_length = found["milliseconds"]
    for way, colour, name in (
        ("eager", PEER, "whole matrix, torch"),
        ("causal", LIMIT, "every causal tile"),
        ("sparse", MAIN, "sparse, selection included"),
    ):
        points = [(int(n), row[way]) for n, row in by_length.items() if way in row]
        time.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=name)
    time.set_xscale("log", base=2)
    time.set_yscale("log")
    time.xaxis.set_minor_locator(NullLocator())
    time.set_xticks([int(n) for n in by_length], [*by_length])
    time.set_xlabel("events in a history")
    time.set_title("ms for 8,192 tokens, forward and backward", fontsize=10, color=INK, loc="left")
    time.legend(frameon=False, fontsize=9)
    peak = found["peak_mib_4096"]
    rows = [
        ("whole matrix", peak["eager"], PEER),
        ("causal tiles", peak["causal"], LIMIT),
        ("sparse", peak["sparse"], MAIN),
    ]
    bars(
        memory,
        rows,
        "peak MiB at 4,096 events",
        goal=round(peak["eager"] * bound("memory_ratio_4096"), 1),
    )
    return figure


def training() -> Figure:
    """Targets a second of each network, beside RecTools."""
    speed = result("training")["figures"]
    figure, (left, right) = canvas(9, 2.9, panels=2)
    hstu, peer = speed["hstu_targets_per_s"], speed["rectools_fast_targets_per_s"]
    title = "HSTU, targets a second"
    bars(
        left,
        [("here", hstu, MAIN), ("RecTools, fast loss", peer, PEER)],
        title,
        goal=bound("ratio_vs_rectools_fast") * peer,
    )
    rows = [
        ("HSTU", hstu, PEER),
        ("HPGR", speed["hpgr_targets_per_s"], MAIN),
        ("HPGR, no ranking", speed["hpgr_without_ranking_targets_per_s"], SECOND),
    ]
    bars(right, rows, "HPGR, targets a second", goal=round(bound("hpgr_over_hstu") * hstu))
    return figure


def serving() -> Figure:
    """Latency and rate of the server, beside reading histories alone."""
    found = result("serving")["figures"]
    figure, (latency, rate) = canvas(9, 2.9, panels=2)
    rows = [(f"{n} clients", found[f"p99_ms_{n}"], MAIN) for n in (8, 64)]
    network = ("reading alone, one", found["network_ms_of_1"], PEER)
    bars(latency, [network, ("1 client", found["p99_ms_1"], MAIN), *rows], "99 of 100 within, ms")
    alone = round(1000 / found["network_ms_of_8"])
    rows = [(f"{n} clients", found[f"rps_{n}"], MAIN) for n in (8, 64)]
    limit = ("reading alone, of 8", alone, LIMIT)
    bars(
        rate,
        [limit, ("1 client", found["rps_1"], MAIN), *rows],
        "answers a second",
        goal=bound("rps_8"),
    )
    return figure


def scoring() -> Figure:
    """The catalogue's product beside the matrix product alone, and users a second."""
    found = result("scoring")["figures"]
    figure, (share, users) = canvas(9, 2.9, panels=2)
    sizes = {"4k": "4 thousand", "100k": "100 thousand", "1m": "1 million"}
    rows = [(name, found[f"share_of_gemm_limit_{size}"], MAIN) for size, name in sizes.items()]
    limit = ("product alone", 1.0, LIMIT)
    bars(share, [limit, *rows], "best 50 of a catalogue, share of the limit")
    row = ("recommend-all", found["users_per_s_ml1m"], MAIN)
    bars(users, [row], "users a second, one thread", goal=bound("users_per_s_ml1m"))
    return figure


def data() -> Figure:
    """Validate and sessionize twenty million events, beside DuckDB."""
    found = result("data")["figures"]
    figure, (validate, cut) = canvas(9, 2.6, panels=2)
    rows = [
        ("hpgr validate", found["validate_s_20m"], MAIN),
        ("DuckDB reads it", found["duckdb_read_s"], PEER),
    ]
    bars(validate, rows, "validate 20 million events, s", goal=bound("validate_s_20m"))
    rows = [
        ("hpgr sessionize", found["sessionize_s_20m"], MAIN),
        ("DuckDB's own cut", found["duckdb_cut_s"], PEER),
    ]
    bars(cut, rows, "sessionize them, s", goal=bound("sessionize_s_20m"))
    return figure


PICTURES = {one.__name__: one for one in (attention, training, serving, scoring, data)}


def save(draw: Callable[[], Figure], target: Path | IO[bytes]) -> None:
    """Draw a picture as SVG whose words are text: same numbers, same bytes."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": "hpgr", "font.family": "sans-serif"}
    with mpl.rc_context(settings):
        draw().savefig(target, format="svg", metadata={"Date": None, "Creator": None})


def drawn() -> Iterator[Path]:
    """Draw every picture; yields the files written."""
    for name, draw in PICTURES.items():
        path = IMAGES / f"speed-{name}.svg"
        with atomic_path(path) as temporary:
            save(draw, temporary)
        yield path


if __name__ == "__main__":
    for path in drawn():
        print(path.relative_to(ROOT))
