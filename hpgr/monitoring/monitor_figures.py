"""Figures of the monitoring page, in the style of the evaluation report.

Every function returns a figure; `embed` turns it into a data URI, so that the page needs no other
file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hpgr.config import Monitor
from hpgr.evaluation.figures import INK, MAIN, QUIET, SECOND, canvas
from hpgr.monitoring.champions import History

FEWEST_PLACES = 6  # on an axis of batches, so that a single bar stays narrow
GREY, PALE = QUIET[0], "#d9b3aa"
DRIFT = {
    "item_drift": ("drift of items", "max_item_drift"),
    "action_drift": ("drift of actions", "max_action_drift"),
    "unknown_items": ("share of unknown items", "max_unknown_items"),
}


def embed(figure: Figure) -> str:
    """Return the figure as a PNG in a data URI; same numbers, same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def volume(batches: Sequence[dict[str, Any]]) -> Figure:
    """Draw the rows of each batch and its events a day; a refused batch is pale."""
    figure, (rows, rate) = canvas(9.0, 2.9, panels=2)
    for axes, key, title in ((rows, "rows", "rows"), (rate, "events_per_day", "events a day")):
        heights = [batch.get(key) or 0 for batch in batches]
        colours = [QUIET[2] if batch["accepted"] else PALE for batch in batches]
        axes.bar(range(1, len(batches) + 1), heights, color=colours, width=0.66)
        axes.set_title(title, fontsize=10, color=INK)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        _number_batches(axes, len(batches))
    return figure


def drift(batches: Sequence[dict[str, Any]], limits: Monitor) -> Figure:
    """Draw drift and unknown items of each batch against the log before it, with the limits."""
    figure, panels = canvas(9.0, 2.7, panels=len(DRIFT))
    for axes, (key, (title, limit_name)) in zip(panels, DRIFT.items(), strict=True):
        known = [(n, b[key]) for n, b in enumerate(batches, 1) if b.get(key) is not None]
        limit = getattr(limits, limit_name)
        places, values = [n for n, _ in known], [value for _, value in known]
        axes.axhline(limit, color=MAIN, linewidth=1.2, linestyle="--")
        axes.plot(places, values, color=QUIET[2], linewidth=1.6)
        colours = [MAIN if value > limit else QUIET[2] for value in values]
        axes.scatter(places, values, color=colours, s=26, zorder=3)
        axes.set_ylim(0, 1.25 * max([limit, *values]))
        axes.set_title(f"{title}, limit {limit:g}", fontsize=10, color=INK)
        _number_batches(axes, len(batches))
    return figure


def metrics(past: History, metric: str, now: datetime) -> Figure:
    """Draw the champion's metric over time as steps, with a point for every version.

    Diamonds are champions that the gate scored again, on the test queries of that day.
    """
    figure, (axes,) = canvas(9.0, 3.0)
    for version in past.versions.values():
        if version.metric is not None:
            reigned = any(reign.version == version.number for reign in past.reigns)
            place, colour = (date2num(version.made), version.metric), SECOND if reigned else GREY
            axes.plot(*place, "o", color=colour, markersize=5.5, zorder=3)
            axes.annotate(
                f"v{version.number}", place, xytext=(5, -11), textcoords="offset points",
                fontsize=8, color=INK,
            )  # fmt: skip
    steps = [
        (date2num(reign.since), past.versions[reign.version].metric or float("nan"))
        for reign in past.reigns
        if reign.version in past.versions
    ]
    if steps:
        times, values = zip(*[*steps, (date2num(now), steps[-1][1])], strict=True)
        axes.step(times, values, where="post", color=MAIN, linewidth=2.2, label="champion")
    if past.scores:
        again = [(date2num(score.at), score.metric) for score in past.scores]
        axes.plot(*zip(*again, strict=True), "D", color=MAIN, mfc="white", label="scored again")
    if steps or past.scores:
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.set_ylabel(metric, color=INK)
    axes.margins(y=0.25)
    locator = AutoDateLocator(minticks=2, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    return figure


def _number_batches(axes: Any, count: int) -> None:
    axes.set_xlim(0.4, max(count, FEWEST_PLACES) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    axes.set_xlabel("batch, oldest first", color=INK, fontsize=9)
