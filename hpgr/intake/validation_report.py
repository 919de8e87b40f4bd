"""The validation report: one self-contained HTML page without scripts or fonts.

Writes nothing: `render` returns the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpgr.intake.contract import EVENT_COLUMNS
from hpgr.intake.expectations import Tally
from hpgr.intake.table_files import LINE
from hpgr.templates import rendered

PAGE = Path(__file__).parent / "validation.html.j2"

WIDTH, HEIGHT = 720, 140  # of the histogram, CSS pixels


def render(
    summary: Mapping[str, Any],
    *,
    tallies: Mapping[str, Sequence[Tally]],
    broken: Sequence[Tally],
    examples: Mapping[str, Sequence[Mapping[str, Any]]],
    histogram: Sequence[int],
    actions: Sequence[tuple[str | None, int]],
) -> str:
    """The report as HTML.

    Args:
        summary: content of summary.json.
        tallies: counts for each rule, by suite.
        broken: the rules that refuse the batch; empty if it is accepted.
        examples: some bad rows for each reason: `file`, `line` and the event columns.
        histogram: accepted events in equal spans of time from the first to the last event.
        actions: the most frequent actions with their counts.
    """
    return rendered(
        PAGE,
        {
            "thousands": "{:,}".format,
            "share": "{:.2%}".format,
            "day": lambda value: datetime.fromtimestamp(value, UTC).date().isoformat(),
        },
        summary=summary,
        tallies=tallies,
        broken=broken,
        examples=examples,
        columns=["file", LINE, *EVENT_COLUMNS],
        bars=_bars(summary, histogram),
        width=WIDTH,
        height=HEIGHT,
        actions=actions,
    )


def _bars(summary: Mapping[str, Any], histogram: Sequence[int]) -> list[dict[str, Any]]:
    """Geometry and label of each bar."""
    first, last = summary["first_timestamp"], summary["last_timestamp"]
    step, highest = WIDTH / len(histogram), max(*histogram, 1)
    return [
        {
            "x": round(n * step, 2),
            "y": round(HEIGHT * (1 - count / highest), 2),
            "width": round(step - 1, 2),
            "height": round(HEIGHT * count / highest, 2),
            "start": int(first + n * (last - first) / len(histogram)),
            "count": count,
        }
        for n, count in enumerate(histogram)
    ]
