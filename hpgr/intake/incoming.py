"""Check a batch of new events before it becomes part of the log.

    hpgr incoming PATH      check only, nothing is written

Every row must keep the contract, as in the validate stage. The batch is compared with the newest
events of the log (volume, drift of items and actions, unknown items, newest event) and with the
batch accepted last (rows). Reads the batch, `artifacts/accepted/` and `artifacts/validated/`, which
must be up to date. On request writes the evidence against a refused batch to `artifacts/rejected/`.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.parquet as pq

from hpgr.intake.acceptance import last_accepted
from hpgr.intake.contract import ITEM, Rule, batch_rules, between
from hpgr.intake.drift import compare
from hpgr.intake.formats import Format, files_of, format_of
from hpgr.intake.increments import batch_files, batch_tables, digest, find, increments
from hpgr.intake.raw_log import RawLog, read_parts
from hpgr.intake.screening import Counts, screen
from hpgr.intake.validation_report import facts_of, hashes, summary_of, write_reports
from hpgr.runtime import UserError, read_json, scratch_prefix, sha256_file
from hpgr.workspace import HERE, Workspace

if TYPE_CHECKING:
    from hpgr.config import Config, Data, Refresh

logger = logging.getLogger(__name__)
# The columns of those rules for a whole log that apply to a batch as well.
ALONE = ("rows_accepted", "quarantined_share", "days_old")


@dataclass(frozen=True)
class BatchFinding:
    """The result of checking one batch.

    Attributes:
        batch: the digest of its content.
        files: its files by the names that they get in the log.
        record: its entry for artifacts/accepted/batches.json.
        reasons: why it is refused; empty if it is accepted.
        bad_rows: lines about its bad rows.
        taken: the increment that it already is; None for a new batch.
    """

    batch: str
    files: Mapping[str, Path]
    record: dict[str, Any]
    reasons: tuple[str, ...]
    bad_rows: tuple[str, ...]
    taken: Path | None

    def refusal(self) -> str:
        """One message with every limit that the batch breaks."""
        lines = [f"{self.record['source']} is refused, the log stays as it is:"]
        lines += [f"  {reason}" for reason in self.reasons]
        return "\n".join([*lines, *self.bad_rows])

    def figures(self) -> str:
        """Its content and its differences from the log, in one line."""
        record = self.record
        parts = [f"{record['rows']:,} rows", f"{record['quarantined_share']:.2%} quarantined"]
        for key, label in (
            ("duplicates", "exact duplicates"),
            ("repeated", "in the log already"),
            ("late", "older than its end"),
        ):
            if record[key]:
                parts.append(f"{record[key]:,} {label}")
        for key in ("item_drift", "action_drift", "unknown_items"):
            if record[key] is not None:
                parts.append(f"{key.replace('_', ' ')} {record[key]:.3f}")
        return f"{record['source']}: {', '.join(parts)}"


def examine(
    cfg: Config, source: Path, *, evidence: bool, workspace: Workspace = HERE
) -> BatchFinding:
    """Check the batch at `source` against the contract and against the log.

    Args:
        cfg: the limits are those of `validate` and `refresh`.
        source: a file of events, or a folder with the format's file names.
        evidence: write quarantine and report of a refused batch to artifacts/rejected/.
        workspace: where the validated log and the records lie.

    Raises:
        UserError: the batch cannot be read, or artifacts/validated/ is out of date.
    """
    received = datetime.now(UTC).isoformat(timespec="seconds")
    tables = batch_tables(cfg.data, source)
    files = batch_files(cfg.data, tables)
    content = digest(files)
    record: dict[str, Any] = {"batch": content, "source": str(source), "received_at": received}
    if taken := find(cfg.data.path, content):
        return BatchFinding(content, files, record, (), (), taken)
    layout, log = format_of(cfg.data), _validated_log(cfg.data, workspace)
    raw = read_parts(layout, [tables], cfg.validate_.chunk_rows)
    log_events = workspace.validated / "events.parquet"
    prefix = scratch_prefix(workspace.artifacts / "incoming")
    workspace.artifacts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=workspace.artifacts) as scratch:
        screened = screen(
            raw,
            cfg,
            Path(scratch),
            name_of=str,
            items=_known_items(layout, raw, workspace.validated),
            items_file=Path(layout.tables[ITEM].name) if ITEM in layout.tables else None,
            known_events=log_events,
        )
        counts, events = screened.counts, screened.out / "events.parquet"
        figures = compare(events, log_events, cfg.refresh)
        rules = [rule for rule in batch_rules(cfg.validate_) if rule.column in ALONE]
        screened.judge(
            [*rules, *refresh_rules(cfg.refresh)],
            _figures(counts, figures, log, last_accepted(workspace) or {}),
        )
        reasons = screened.reasons()
        if reasons and evidence:
            facts = facts_of(events)
            names = {path: name for name, path in files.items()}
            inputs = {names[path]: sha256_file(path) for path in raw.files}
            summary = {
                **figures,
                **summary_of(screened, source, cfg.data.format, inputs, facts),
                "last_accepted": None,
            }
            write_reports(screened, summary, facts)
            screened.publish(workspace.rejected, keep_tables=False)
    for note in screened.notes:
        logger.warning("%s", note)
    record |= {
        "accepted": not reasons,
        "reasons": reasons,
        "rows": counts.rows,
        "quarantined_share": counts.quarantined_share,
        "repeated": counts.repeated,
        "duplicates": counts.duplicates,
        **figures,
    }
    return BatchFinding(content, files, record, tuple(reasons), tuple(screened.bad_rows()), None)


def _validated_log(data: Data, workspace: Workspace) -> dict[str, Any]:
    """The validate stage's summary of the log; refuse one that is out of date."""
    path = workspace.validated / "summary.json"
    summary = read_json(path) if path.is_file() else {}
    layout = format_of(data)
    parts = [layout.part(folder) for folder in (data.path, *increments(data.path))]
    files = [file for part in parts for file in files_of(part) if file.is_file()]
    if summary.get("inputs") != hashes(files, data.path):
        state = "is of another state of the log" if summary else "not found"
        raise UserError(
            f"{path} {state}: a batch is compared with the validated log; run "
            "`dvc repro validate` first"
        )
    return summary


def _known_items(layout: Format, raw: RawLog, validated: Path) -> pd.DataFrame | None:
    """Items of the log's table and of the batch's; None if the log has no such table."""
    if ITEM not in layout.tables:
        return None
    known = pq.read_table(validated / "items.parquet", columns=[ITEM]).to_pandas()
    return known if raw.items is None else pd.concat([known, raw.items[[ITEM]]])


def refresh_rules(limits: Refresh) -> tuple[Rule, ...]:
    """Rules for a batch compared with the log; `_figures` makes the columns."""
    most = limits.max_volume_change
    factor = partial(
        between,
        expected=f"between 1/{most:g} and {most:g} times as many (refresh.max_volume_change)",
        least=1 / most,
        most=most,
    )
    return (
        factor(
            name="rows against the batch accepted last",
            column="rows_factor",
            fix="look for a file that was cut off or written twice, or raise the limit",
        ),
        factor(
            name="events a day against the newest of the log",
            column="volume_factor",
            fix="look for a lost or doubled part of the batch, or raise the limit",
        ),
        between(
            name="drift of the items",
            column="item_drift",
            expected=f"at most {limits.max_item_drift} (refresh.max_item_drift)",
            fix="look for ids of another catalogue or in the wrong column, or raise the limit",
            most=limits.max_item_drift,
        ),
        between(
            name="drift of the actions",
            column="action_drift",
            expected=f"at most {limits.max_action_drift} (refresh.max_action_drift)",
            fix="look for another scale of ratings or other words, or raise the limit",
            most=limits.max_action_drift,
        ),
        between(
            name="share of events with items that the log does not have",
            column="unknown_items",
            expected=f"at most {limits.max_unknown_items} (refresh.max_unknown_items)",
            fix="look for ids of another catalogue, or raise the limit",
            most=limits.max_unknown_items,
        ),
        between(
            name="seconds from the batch's newest event to the log's",
            column="seconds_behind",
            expected="at most 0: the batch ends no earlier than the log",
            fix="look for an old batch; its missing events can only come with newer ones",
            most=0,
        ),
    )


def _figures(
    counts: Counts, figures: Mapping[str, Any], log: Mapping[str, Any], before: Mapping[str, Any]
) -> dict[str, float | None]:
    """The figures that the rules for a batch are about, `figures` among them.

    `before` is the record of the batch accepted last.
    """
    last, before_rows = figures["last_timestamp"], before.get("rows")
    per_day, log_per_day = figures["events_per_day"], figures["events_per_day_before"]
    return {
        **figures,
        "rows_accepted": counts.accepted,
        "quarantined_share": counts.quarantined_share,
        "days_old": None if last is None else (datetime.now(UTC).timestamp() - last) / 86400,
        "rows_factor": None if before_rows is None else counts.rows / before_rows,
        "volume_factor": None if last is None else per_day / log_per_day,
        "seconds_behind": None if last is None else log["last_timestamp"] - last,
    }
