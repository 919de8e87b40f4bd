"""Stage `validate`: raw folder in, accepted events, quarantine and a report out.

    hpgr validate

Reads the folder `data.path` and `artifacts/accepted/summary.json` (what was accepted before, kept
where DVC does not delete it). Writes `artifacts/validated/`, see docs/artifacts.md; where the
batch is refused it writes the quarantine and the reports to `artifacts/rejected/` instead.

The log passes through twice, `validate.chunk_rows` rows at a time: raw to a scratch Parquet, in
which DuckDB finds the exact duplicates out of core; then chunk by chunk through the rules, to the
events or the quarantine. The same input gives the same bytes.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hpgr.config import Config
from hpgr.intake.contract import (
    CATEGORIES,
    ITEM,
    ROW,
    TITLE,
    USER,
    batch_rules,
)
from hpgr.intake.expectations import Expectations, failures
from hpgr.intake.formats import RawLog, read_raw
from hpgr.intake.increments import FOLDER
from hpgr.intake.layouts import column_names
from hpgr.intake.notes import notes_on_log
from hpgr.intake.screening import (
    as_table,
    bad_rows,
    breach,
    check_rows,
    check_tables,
    publish,
)
from hpgr.intake.staging import copies, mend_ids, open_duckdb, stage
from hpgr.intake.validation_summary import digest_of, facts_of, hashes, summary_of, write_reports
from hpgr.runtime import DamagedFile, UserError, read_json, scratch_prefix, write_json
from hpgr.workspace import HERE, Workspace

VALIDATED = Path("artifacts/validated")
SCRATCH = Path("artifacts/validate")
REJECTED = Path("artifacts/rejected")
ACCEPTED = Path("artifacts/accepted/summary.json")

logger = logging.getLogger(__name__)
ITEMS_SCHEMA = pa.schema(
    [(ITEM, pa.string()), (TITLE, pa.string()), (CATEGORIES, pa.list_(pa.string()))]
)


def validate(cfg: Config, workspace: Workspace = HERE) -> None:
    """Run the stage in the current folder.

    Raises:
        UserError: the raw folder cannot be read, or the batch breaks a limit of `cfg.validate_`.
    """
    raw = read_raw(cfg.data, cfg.validate_.chunk_rows)
    inputs = hashes(raw.files, cfg.data.path)
    dialects = dict(zip(inputs, map(str, raw.dialects), strict=True))
    source = f"{cfg.data.format} {raw.parts[0].events.as_posix()}"
    previous = _last_accepted(source, inputs)
    expectations = Expectations()
    VALIDATED.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=scratch_prefix(SCRATCH), dir=VALIDATED.parent
    ) as scratch:
        out = Path(scratch) / "out"
        out.mkdir()
        staged = Path(scratch) / "staged.parquet"
        stage(raw.events, staged)
        mended = mend_ids(staged, [part.events for part in raw.parts])
        items_file = raw.parts[0].items
        check_tables(raw, expectations)
        counts = check_rows(
            cfg.validate_,
            staged,
            copies(staged),
            files=[path.relative_to(cfg.data.path).as_posix() for path in raw.sources],
            items=raw.items,
            items_file=items_file,
            expectations=expectations,
            out=out,
        )
        notes = notes_on_log(
            raw, staged, column_names(cfg.data), mended, counts, raw.items, items_file
        )
        _write_tables(raw, out)
        facts = facts_of(out / "events.parquet")
        summary = {
            **summary_of(cfg.data.path, cfg.data.format, inputs, dialects, counts, facts),
            "notes": [str(note) for note in notes],
            "users_without_features": None if raw.users is None else _users_without_features(out),
            "last_accepted": previous,
            "volume_change": (
                None if previous is None else counts.accepted / max(previous["accepted"], 1) - 1
            ),
        }
        _check_batch(cfg, summary, expectations)
        broken = failures(expectations, rows="events")
        write_reports(out, summary, counts, facts, expectations, broken)
        publish(out, REJECTED if broken else VALIDATED, keep_tables=not broken)
    for note in notes:
        logger.warning("%s", note)
    if broken:
        raise UserError(
            "\n".join(
                [
                    f"{cfg.data.path} is refused, nothing was written to {VALIDATED}:",
                    *(f"  {breach(tally)}" for tally in broken),
                    *bad_rows(counts, expectations.tallies["events"]),
                    f"See {REJECTED / 'report.html'} and {REJECTED / 'quarantine.parquet'}.",
                ]
            )
        )
    shutil.rmtree(REJECTED, ignore_errors=True)
    _remember(source, inputs, summary)
    print(
        f"{cfg.data.path}: {counts.accepted:,} of {counts.rows:,} rows accepted, "
        f"{counts.quarantined:,} quarantined"
        + (f", {counts.duplicates:,} exact duplicates left out" if counts.duplicates else "")
        + (f", {counts.repeated:,} were in an earlier batch" if counts.repeated else "")
        + f"; see {VALIDATED / 'report.html'}"
    )


def _write_tables(raw: RawLog, out: Path) -> None:
    """items.parquet and users.parquet; made from the events where the source has none."""
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
    events, users = str(out / "events.parquet"), str(out / "users.parquet")
    with open_duckdb(out.parent) as connection:
        return connection.execute(
            f"SELECT count(DISTINCT {USER}) FROM read_parquet(?) "
            f"WHERE {USER} NOT IN (SELECT {USER} FROM read_parquet(?) WHERE {USER} NOTNULL)",
            [events, users],
        ).fetchall()[0][0]


def _check_batch(cfg: Config, summary: dict[str, Any], expectations: Expectations) -> None:
    previous = summary["last_accepted"]
    facts = {
        "rows_accepted": summary["accepted"],
        "quarantined_share": summary["quarantined_share"],
        "volume_change": summary["volume_change"],
        "seconds_behind": (
            None if previous is None else previous["last_timestamp"] - summary["last_timestamp"]
        ),
        "users_without_features": summary["users_without_features"],
        "days_old": (time.time() - summary["last_timestamp"]) / 86400,
    }
    expectations.add("batch", batch_rules(cfg.validate_))
    expectations.check("batch", pd.DataFrame([facts]).astype("float64"))


def _history() -> dict[str, list[dict[str, Any]]]:
    if not ACCEPTED.exists():
        return {}
    try:
        return read_json(ACCEPTED)
    except DamagedFile as error:
        cure = "delete it; the next batch is then compared with none before it"
        raise DamagedFile(ACCEPTED, error.__cause__, cure) from error


def _last_accepted(source: str, inputs: dict[str, str]) -> dict[str, Any] | None:
    """The batch accepted before this one; None for the first.

    An input that was accepted before is compared with what it was compared with then, so that
    repeating a run repeats its outputs. A log with increments is compared with the longest part of
    it that was accepted: a batch that was taken out again is no measure for the mended one.
    """
    history = _history().get(source, [])
    digests = [batch["digest"] for batch in history]
    digest = digest_of(inputs)
    before = history[: digests.index(digest)] if digest in digests else history
    digests = digests[: len(before)]
    newest_first = sorted({_increment(name) for name in inputs} - {""}, reverse=True)
    part = dict(inputs)
    for increment in newest_first:
        part = {name: value for name, value in part.items() if _increment(name) != increment}
        if (found := digest_of(part)) in digests:
            return history[digests.index(found)]
    return before[-1] if before else None


def _increment(name: str) -> str:
    """Folder of the increment that an input lies in; nothing for the base."""
    folder, _, rest = name.partition("/")
    return rest.partition("/")[0] if folder == FOLDER else ""


def _remember(source: str, inputs: dict[str, str], summary: dict[str, Any]) -> None:
    history = _history()
    batches = history.setdefault(source, [])
    digest = digest_of(inputs)
    if digest not in [batch["digest"] for batch in batches]:
        kept = ("accepted", "first_timestamp", "last_timestamp")
        batches.append({"digest": digest} | {name: summary[name] for name in kept})
        write_json(ACCEPTED, history)
