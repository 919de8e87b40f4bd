"""The summary, the report page and the Data Docs on checked rows.

Shared by the validate stage and the check of a new batch. Reads `events.parquet`, writes
`summary.json`, `report.html` (self-contained, without scripts or fonts) and `data_docs/` beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpgr.intake.contract import ACTION, EVENT_COLUMNS, ITEM, TIMESTAMP, USER
from hpgr.intake.staging import open_duckdb
from hpgr.intake.table_files import LINE
from hpgr.runtime import sha256_file, write_json, write_text
from hpgr.templates import rendered

if TYPE_CHECKING:
    from hpgr.intake.expectations import Expectations, Tally
    from hpgr.intake.screening import Counts

PAGE = Path(__file__).parent / "validation.html.j2"
WIDTH, HEIGHT = 720, 140  # of the histogram, CSS pixels
HISTOGRAM_BINS = 60
ACTIONS_SHOWN = 12


def facts_of(events: Path) -> dict[str, Any]:
    """Figures of the accepted `events`, by DuckDB: counts, first and last second, distributions."""
    with open_duckdb(events.parent.parent) as connection:

        def query(sql: str) -> list[tuple[Any, ...]]:
            return connection.execute(sql, [str(events)]).fetchall()

        num_users, num_items, first, last = query(
            f"SELECT count(DISTINCT {USER}), count(DISTINCT {ITEM}), min({TIMESTAMP}), "
            f"max({TIMESTAMP}) FROM read_parquet(?)"
        )[0]
        if first is None:
            first = last = 0
        width = (last - first) / HISTOGRAM_BINS or 1.0
        bins = dict(
            query(
                f"SELECT least(floor(({TIMESTAMP} - {first}) / {width}), {HISTOGRAM_BINS - 1}), "
                "count(*) FROM read_parquet(?) GROUP BY 1"
            )
        )
        return {
            "users": num_users,
            "items": num_items,
            "first": first,
            "last": last,
            "histogram": [bins.get(float(n), 0) for n in range(HISTOGRAM_BINS)],
            "actions": query(
                f"SELECT {ACTION}, count(*) AS n FROM read_parquet(?) "
                f"GROUP BY 1 ORDER BY n DESC, 1 LIMIT {ACTIONS_SHOWN}"
            ),
        }


def summary_of(
    path: Path,
    kind: str,
    inputs: dict[str, str],
    dialects: dict[str, str],
    counts: Counts,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Content of summary.json; nothing in it depends on the time of the run.

    `inputs` and `dialects` have an entry for each file read: its sha256 and its dialect.
    """
    return {
        "path": path.as_posix(),
        "format": kind,
        "inputs": inputs,
        "dialects": dialects,
        "rows": counts.rows,
        "accepted": counts.accepted,
        "quarantined": counts.quarantined,
        "repeated": counts.repeated,
        "duplicates": counts.duplicates,
        "quarantined_share": counts.quarantined_share,
        "reasons": dict(counts.reasons),
        "users": facts["users"],
        "items": facts["items"],
        "first_event": _iso(facts["first"]),
        "last_event": _iso(facts["last"]),
        "first_timestamp": facts["first"],
        "last_timestamp": facts["last"],
    }


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def write_reports(
    out: Path,
    summary: dict[str, Any],
    counts: Counts,
    facts: dict[str, Any],
    expectations: Expectations,
    broken: Sequence[Tally],
) -> None:
    """Write summary, report and Data Docs to `out`."""
    write_json(out / "summary.json", summary)
    html = _rendered(
        summary,
        tallies=expectations.tallies,
        broken=broken,
        examples=counts.examples,
        histogram=facts["histogram"],
        actions=facts["actions"],
    )
    write_text(out / "report.html", html)
    expectations.write_docs(
        out / "data_docs",
        run_name=digest_of(summary["inputs"])[:12],
        run_time=datetime.fromtimestamp(summary["last_timestamp"], UTC),
    )


def hashes(files: Sequence[Path], root: Path) -> dict[str, str]:
    """The sha256 of each file by its path below `root`."""
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in files}


def digest_of(inputs: dict[str, str]) -> str:
    """One hash for all input files."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _rendered(
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
