"""Check raw rows by the rules; write them to the events or, with reasons, to the quarantine.

Shared by the validate stage and the check of a new batch. Writes the staged rows (`staging.py`),
`events.parquet` and `quarantine.parquet` to the folder it is given.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from hpgr.intake.contract import (
    COPY_RULE,
    EVENT_COLUMNS,
    EVENTS,
    ITEM,
    LINE,
    REPEATED_RULE,
    ROW,
    SOURCE,
    TIMESTAMP,
    USER,
    Rule,
    join_reasons,
    prepare,
    row_rules,
    table_rules,
)
from hpgr.intake.expectations import Expectations, Tally
from hpgr.intake.formats import column_names
from hpgr.intake.log_notes import notes_on_log
from hpgr.intake.staging import copies, mend_ids, repeated_from, stage
from hpgr.runtime import UserError, atomic_folder

if TYPE_CHECKING:
    from hpgr.config import Config
    from hpgr.intake.file_problems import FileProblem
    from hpgr.intake.raw_log import RawLog

FILE = "file"  # of a quarantined row, below the raw folder
EVENTS_SCHEMA = pa.schema(
    [(name, pa.int64() if name == TIMESTAMP else pa.string()) for name in EVENT_COLUMNS]
    + [(ROW, pa.int64())]
)
QUARANTINE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in EVENT_COLUMNS]
    + [(ROW, pa.int64()), (FILE, pa.string()), (LINE, pa.int64()), ("reason", pa.string())]
)
EXAMPLES_PER_REASON = 5


@dataclass
class Counts:
    """Numbers of rows by result of the check.

    `quarantined` rows are bad. `repeated` ones are good but were in an earlier batch, and
    `duplicates` equal an earlier row of their own file; the quarantine's file has both as well.
    """

    rows: int = 0
    quarantined: int = 0
    repeated: int = 0
    duplicates: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def accepted(self) -> int:
        """Rows among the events."""
        return self.rows - self.quarantined - self.repeated - self.duplicates

    @property
    def quarantined_share(self) -> float:
        """Share of bad rows among all."""
        return self.quarantined / self.rows

    def add(self, reason: np.ndarray, found: Mapping[str, np.ndarray], chunk: pd.DataFrame) -> None:
        """Count a chunk by the joined reasons of its rows; `found` has positions by rule."""
        repeated = int((reason == REPEATED_RULE.name).sum())
        duplicates = int((reason == COPY_RULE.name).sum())
        self.rows += len(chunk)
        self.repeated += repeated
        self.duplicates += duplicates
        self.quarantined += int((reason != "").sum()) - repeated - duplicates
        for name, rows in found.items():
            self.reasons[name] += len(rows)
            examples = self.examples.setdefault(name, [])
            room = EXAMPLES_PER_REASON - len(examples)
            shown = chunk.iloc[rows[:room]][[FILE, LINE, *EVENT_COLUMNS]]
            examples += shown.astype(object).where(shown.notna(), None).to_dict("records")


def screen(
    raw: RawLog,
    cfg: Config,
    scratch: Path,
    expectations: Expectations,
    *,
    files: Sequence[str],
    items: pd.DataFrame | None,
    items_file: Path | None,
    known_events: Path | None = None,
) -> tuple[Counts, list[FileProblem]]:
    """Check an opened log or batch; write its events and quarantine to the new `scratch`/out.

    Args:
        raw: the log or batch; its events are read once and staged.
        cfg: the contract's limits and the names of columns.
        scratch: an existing folder.
        expectations: receives the suites `items`, `users` and `events`, and their tallies.
        files: name of each file of events, by its `source`.
        items: the known items in column item_id; None if any item is allowed.
        items_file: name of the file that lists them, if there is one.
        known_events: accepted events of earlier batches that are not part of `raw`.

    Returns:
        Numbers of rows by result, and notes on the log.

    Raises:
        UserError: there is no row at all, or a file is unreadable.
    """
    out, staged = scratch / "out", scratch / "staged.parquet"
    out.mkdir()
    stage(raw.events, staged)
    mended = mend_ids(staged, [part[EVENTS] for part in raw.parts])
    _check_tables(raw, expectations)
    rules, counts = row_rules(cfg.validate_, items_file), Counts()
    chunks = check_rows(staged, rules, expectations, cfg.validate_.chunk_rows, items, known_events)
    with (
        pq.ParquetWriter(out / "events.parquet", EVENTS_SCHEMA) as events,
        pq.ParquetWriter(out / "quarantine.parquet", QUARANTINE_SCHEMA) as quarantine,
    ):
        for chunk, found in chunks:
            reason = join_reasons(found, rules, len(chunk))
            bad = reason != ""
            kept = chunk[~bad].assign(timestamp=chunk.loc[~bad, "seconds"].astype(np.int64))
            events.write_table(as_table(kept, EVENTS_SCHEMA))
            chunk = chunk.assign(file=np.array(files, dtype=object)[chunk[SOURCE].to_numpy()])
            refused = chunk[bad].assign(reason=reason[bad])
            quarantine.write_table(as_table(refused, QUARANTINE_SCHEMA))
            counts.add(reason, found, chunk)
    order = [rule.name for rule in rules if counts.reasons[rule.name]]
    counts.reasons = Counter({name: counts.reasons[name] for name in order})
    if counts.rows == 0:
        raise UserError(f"{', '.join(files)} has no rows: expected one event a row")
    columns = column_names(cfg.data)
    return counts, notes_on_log(raw, staged, columns, mended, counts, items, items_file)


def check_rows(
    staged: Path,
    rules: Sequence[Rule],
    expectations: Expectations,
    chunk_rows: int,
    items: pd.DataFrame | None,
    known_events: Path | None = None,
) -> Iterator[tuple[pd.DataFrame, dict[str, np.ndarray]]]:
    """Chunks of the staged rows, as `prepare` makes them, with the positions that break each rule.

    Arguments are as in `screen`.
    """
    within, repeated = copies(staged)
    if known_events is not None:
        repeated = repeated_from(staged, known_events)
    expectations.add("events", rules)
    known = None if items is None else pd.Index(items[ITEM].dropna().unique())
    with pq.ParquetFile(staged) as file:
        now, batches = int(time.time()), file.iter_batches(chunk_rows)
        for batch in tqdm(batches, desc="check", unit="chunk", disable=None):
            chunk = prepare(
                batch.to_pandas(), now=now, copies=within, repeated=repeated, known_items=known
            )
            yield chunk, expectations.check("events", chunk)


def _check_tables(raw: RawLog, expectations: Expectations) -> None:
    """Check the ids of the tables of items and users."""
    for name, table, key in (("items", raw.items, ITEM), ("users", raw.users, USER)):
        if table is not None:
            files = " and ".join(str(path) for path, its_key, _ in raw.tables if its_key == key)
            expectations.add(name, table_rules(key, files))
            expectations.check(name, table[[key]])


def as_table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, with its types."""
    return pa.Table.from_pandas(frame[schema.names], schema, preserve_index=False)


def publish(out: Path, target: Path, *, keep_tables: bool) -> None:
    """Move the outputs to `target`; a refused batch leaves no tables for a later stage to read."""
    if not keep_tables:
        for name in ("events.parquet", "items.parquet", "users.parquet"):
            (out / name).unlink(missing_ok=True)
    with atomic_folder(target) as folder:
        for path in out.iterdir():
            shutil.move(path, folder / path.name)


def breach(tally: Tally) -> str:
    """The reason for a refusal in one line: found, expected, fix."""
    found = tally.examples[0] if tally.examples else f"{tally.broken:,} rows"
    short = f"{found:.4g}" if isinstance(found, float) else repr(found)
    return f"{tally.rule.name}: found {short}, expected {tally.rule.expected}; {tally.rule.fix}"


def bad_rows(counts: Counts, tallies: Sequence[Tally]) -> list[str]:
    """One line for each broken rule with its number of rows; empty if no row is bad."""
    if not counts.quarantined:
        return []
    share = counts.quarantined_share
    broken = [tally for tally in tallies if tally.broken and tally.rule.gate]
    return [
        f"{counts.quarantined:,} of {counts.rows:,} rows ({share:.1%}) are bad:",
        *(f"  {tally.broken:,} x {tally.rule.name}; {tally.rule.fix}" for tally in broken),
    ]
