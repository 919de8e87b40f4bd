"""Figures of the accepted events, the summary and the reports on checked rows.

Shared by the validate stage and the check of a new batch. Reads `events.parquet`, writes
`summary.json`, `report.html` and `data_docs/` beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpgr.intake.contract import ACTION, ITEM, TIMESTAMP, USER
from hpgr.intake.expectations import Expectations, Tally
from hpgr.intake.screening import Counts
from hpgr.intake.staging import open_duckdb
from hpgr.intake.validation_report import render
from hpgr.runtime import sha256_file, write_json, write_text

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
    html = render(
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
