"""The summary, the report page and the Data Docs on checked rows.

Shared by the validate stage and the check of a new batch. Reads `events.parquet`, writes
`summary.json`, `report.html` (self-contained, without scripts or fonts) and `data_docs/` beside it.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpgr.intake.contract import ACTION, EVENT_COLUMNS, EVENTS, ITEM, LINE, TIMESTAMP, USER
from hpgr.intake.increments import digest_of
from hpgr.intake.staging import open_duckdb
from hpgr.runtime import sha256_file, write_json, write_text
from hpgr.templates import rendered

if TYPE_CHECKING:
    from hpgr.intake.screening import Screening

PAGE = Path(__file__).parent / "validation.html.j2"
WIDTH, HEIGHT = 720, 140  # of the histogram, CSS pixels
HISTOGRAM_BINS = 60
ACTIONS_SHOWN = 12


def facts_of(events: Path) -> dict[str, Any]:
    """Figures of the accepted `events`, by DuckDB: counts, first and last second, distributions."""
    with open_duckdb(events.parent.parent) as connection:

        def ask(sql: str) -> list[tuple[Any, ...]]:
            return connection.execute(sql, [glob.escape(str(events))]).fetchall()

        ((num_users, num_items, first, last),) = ask(
            f"SELECT count(DISTINCT {USER}), count(DISTINCT {ITEM}), min({TIMESTAMP}), "
            f"max({TIMESTAMP}) FROM read_parquet(?)"
        )
        if first is None:
            first = last = 0
        width = (last - first) / HISTOGRAM_BINS or 1.0
        bins = dict(
            ask(
                f"SELECT least(floor(({TIMESTAMP} - {first}) / {width}), {HISTOGRAM_BINS - 1}), "
                "count(*) FROM read_parquet(?) GROUP BY 1"
            )
        )
        actions = ask(
            f"SELECT {ACTION}, count(*) AS n FROM read_parquet(?) "
            f"GROUP BY 1 ORDER BY n DESC, 1 LIMIT {ACTIONS_SHOWN}"
        )
    return {
        "users": num_users,
        "items": num_items,
        "first": first,
        "last": last,
        "histogram": [bins.get(float(n), 0) for n in range(HISTOGRAM_BINS)],
        "actions": actions,
    }


def summary_of(
    screened: Screening, path: Path, kind: str, inputs: dict[str, str], facts: dict[str, Any]
) -> dict[str, Any]:
    """Content of summary.json; nothing in it depends on the time of the run.

    `inputs` has the sha256 of each file that was read at `path`, which is of format `kind`.
    """
    counts, first, last = screened.counts, facts["first"], facts["last"]
    shown = {} if screened.shown is None else {"impressions": asdict(screened.shown)}
    rules = screened.expectations.tallies[EVENTS]
    return {
        "path": path.as_posix(),
        "format": kind,
        "inputs": inputs,
        "dialects": dict(zip(inputs, map(str, screened.raw.dialects), strict=True)),
        "rows": counts.rows,
        "accepted": counts.accepted,
        "quarantined": counts.quarantined,
        "repeated": counts.repeated,
        "duplicates": counts.duplicates,
        "quarantined_share": counts.quarantined_share,
        "reasons": {tally.rule.name: tally.broken for tally in rules if tally.broken},
        "users": facts["users"],
        "items": facts["items"],
        "first_event": datetime.fromtimestamp(first, UTC).isoformat(),
        "last_event": datetime.fromtimestamp(last, UTC).isoformat(),
        "first_timestamp": first,
        "last_timestamp": last,
        "notes": [str(note) for note in screened.notes],
        **shown,
    }


def write_reports(screened: Screening, summary: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write summary, report and Data Docs to the folder of the checked rows."""
    out = screened.out
    write_json(out / "summary.json", summary)
    filters = {
        "thousands": "{:,}".format,
        "share": "{:.2%}".format,
        "day": lambda value: datetime.fromtimestamp(value, UTC).date().isoformat(),
    }
    page = rendered(
        PAGE,
        filters,
        summary=summary,
        tallies=screened.expectations.tallies,
        broken=screened.broken,
        examples=screened.counts.examples,
        columns=["file", LINE, *EVENT_COLUMNS],
        bars=_bars(**facts),
        width=WIDTH,
        height=HEIGHT,
        actions=facts["actions"],
    )
    write_text(out / "report.html", page)
    screened.expectations.write_docs(
        out / "data_docs",
        run_name=digest_of(summary["inputs"])[:12],
        run_time=datetime.fromtimestamp(summary["last_timestamp"], UTC),
    )


def hashes(files: Sequence[Path], root: Path) -> dict[str, str]:
    """The sha256 of each file by its path below `root`."""
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in files}


def _bars(*, first: int, last: int, histogram: Sequence[int], **_: Any) -> list[dict[str, Any]]:
    """Geometry and label of each bar."""
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
