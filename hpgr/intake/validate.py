"""Stage `validate`: from the raw folder to accepted events, a quarantine and a report.

    hpgr validate

Reads the folder `data.path` and the logs accepted before (`accepted_logs.py`). Writes
`artifacts/validated/` (docs/artifacts.md), or for a refused log the quarantine and the reports to
`artifacts/rejected/`.

The log is read once, `validate.chunk_rows` rows at a time, into a scratch Parquet. There DuckDB
finds the exact duplicates and the rows that may break a rule, out of core; these are checked and
go to the quarantine if they do, all others to the events. The same input gives the same bytes.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hpgr.intake.accepted_logs import last_accepted, remember
from hpgr.intake.contract import CATEGORIES, EVENTS, ITEM, ROW, TITLE, USER, batch_rules
from hpgr.intake.raw_log import RawLog, read_raw
from hpgr.intake.screening import as_table, screen
from hpgr.intake.staging import open_duckdb, query
from hpgr.intake.validation_report import facts_of, hashes, summary_of, write_reports
from hpgr.runtime import UserError, scratch_prefix
from hpgr.workspace import HERE, Workspace

if TYPE_CHECKING:
    from hpgr.config import Config

logger = logging.getLogger(__name__)
ITEMS_SCHEMA = pa.schema(
    [(ITEM, pa.string()), (TITLE, pa.string()), (CATEGORIES, pa.list_(pa.string()))]
)


def validate(cfg: Config, workspace: Workspace = HERE) -> None:
    """Check the raw log and write the accepted part of it.

    Args:
        cfg: sections `data` and `validate`.
        workspace: where the run's files lie; `data.path` does not depend on it.

    Raises:
        UserError: the raw folder cannot be read, or the log breaks a limit of `cfg.validate_`.
    """
    raw = read_raw(cfg.data, cfg.validate_.chunk_rows)
    inputs = hashes(raw.files, cfg.data.path)
    source = f"{cfg.data.format} {raw.parts[0][EVENTS].as_posix()}"
    previous = last_accepted(source, inputs, workspace)
    validated, rejected = workspace.validated, workspace.rejected
    validated.parent.mkdir(parents=True, exist_ok=True)
    prefix = scratch_prefix(validated.with_name("validate"))
    with tempfile.TemporaryDirectory(prefix=prefix, dir=validated.parent) as scratch:
        screened = screen(
            raw,
            cfg,
            Path(scratch),
            name_of=lambda path: path.relative_to(cfg.data.path).as_posix(),
            items=raw.items,
            items_file=raw.parts[0].get(ITEM),
        )
        out, counts = screened.out, screened.counts
        _write_tables(raw, out)
        facts = facts_of(out / "events.parquet")
        summary = {
            **summary_of(screened, cfg.data.path, cfg.data.format, inputs, facts),
            "users_without_features": None if raw.users is None else _users_without_features(out),
            "last_accepted": previous,
            "volume_change": (
                None if previous is None else counts.accepted / max(previous["accepted"], 1) - 1
            ),
        }
        screened.judge(batch_rules(cfg.validate_), _figures(summary))
        broken = bool(screened.broken)
        write_reports(screened, summary, facts)
        screened.publish(rejected if broken else validated, keep_tables=not broken)
    for note in screened.notes:
        logger.warning("%s", note)
    if broken:
        raise UserError(
            "\n".join(
                [
                    f"{cfg.data.path} is refused, nothing was written to {validated}:",
                    *(f"  {reason}" for reason in screened.reasons()),
                    *screened.bad_rows(),
                    f"See {rejected / 'report.html'} and {rejected / 'quarantine.parquet'}.",
                ]
            )
        )
    shutil.rmtree(rejected, ignore_errors=True)
    remember(source, inputs, summary, workspace)
    print(
        f"{cfg.data.path}: {counts.accepted:,} of {counts.rows:,} rows accepted, "
        f"{counts.quarantined:,} quarantined"
        + (f", {counts.duplicates:,} exact duplicates left out" if counts.duplicates else "")
        + (f", {counts.repeated:,} were in an earlier batch" if counts.repeated else "")
        + (
            f"; {shown.accepted_lists:,} of {shown.lists:,} impressions accepted"
            if (shown := screened.shown) is not None
            else ""
        )
        + f"; see {validated / 'report.html'}"
    )


def _write_tables(raw: RawLog, out: Path) -> None:
    """Write items.parquet and users.parquet; without a table in the source, from the events."""
    events = str(out / "events.parquet")
    distinct = f"SELECT {{0}} FROM read_parquet(?) GROUP BY {{0}} ORDER BY min({ROW})"
    items, users = raw.items, raw.users
    with open_duckdb(out.parent) as connection:
        if items is None:
            items = connection.execute(distinct.format(ITEM), [events]).df()
            none = pd.Series([[] for _ in range(len(items))], dtype=object)
            items = items.assign(title=None, categories=none)
        if users is None:
            users = connection.execute(distinct.format(USER), [events]).df()
    items = items.assign(title=items[TITLE].fillna(items[ITEM]))
    pq.write_table(as_table(items, ITEMS_SCHEMA), out / "items.parquet")
    text = pa.schema([(name, pa.string()) for name in users.columns])
    pq.write_table(as_table(users, text), out / "users.parquet")


def _users_without_features(out: Path) -> int:
    sql = (
        f"SELECT count(DISTINCT {USER}) FROM read_parquet(?) "
        f"WHERE {USER} NOT IN (SELECT {USER} FROM read_parquet(?) WHERE {USER} NOTNULL)"
    )
    ((count,),) = query(out.parent, sql, out / "events.parquet", out / "users.parquet")
    return count


def _figures(summary: dict[str, Any]) -> dict[str, float | None]:
    """The figures that `batch_rules` are about."""
    previous = summary["last_accepted"]
    return {
        "rows_accepted": summary["accepted"],
        "quarantined_share": summary["quarantined_share"],
        "volume_change": summary["volume_change"],
        "seconds_behind": (
            None if previous is None else previous["last_timestamp"] - summary["last_timestamp"]
        ),
        "users_without_features": summary["users_without_features"],
        "days_old": (time.time() - summary["last_timestamp"]) / 86400,
    }
