"""Check raw rows by the rules; write them to the events or, with reasons, to the quarantine.

Shared by the validate stage and the check of a new batch. Writes the staged rows (`staging.py`),
`events.parquet` and `quarantine.parquet` to the folder it is given.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from hpgr.data.parquet import write_parquet
from hpgr.intake.contract import (
    COPY_RULE,
    EVENT_COLUMNS,
    EVENTS,
    IMPRESSIONS,
    ITEM,
    ITEM_KNOWN,
    LINE,
    REPEATED_RULE,
    ROW,
    SOURCE,
    TIMESTAMP,
    USER,
    Rule,
    among,
    join_reasons,
    prepare,
    row_rules,
    table_rules,
)
from hpgr.intake.expectations import Expectations, Tally
from hpgr.intake.formats import column_names
from hpgr.intake.impression_rules import impressions_rules
from hpgr.intake.impression_screening import (
    ShownCounts,
    empty_impressions,
    screen_impressions,
)
from hpgr.intake.log_notes import notes_on_log
from hpgr.intake.raw_file import parts_of
from hpgr.intake.staging import (
    copies,
    mend_ids,
    repeated_from,
    stage,
    staged_rows,
)
from hpgr.intake.suspects import suspects, with_sample
from hpgr.runtime import UserError, atomic_folder

if TYPE_CHECKING:
    from hpgr.config import Config, Validate
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
EVENTS_AT_A_TIME = 1 << 18


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
        """Count the reasons of a chunk's rows, joined; `found` has positions by rule."""
        repeated = int((reason == REPEATED_RULE.name).sum())
        duplicates = int((reason == COPY_RULE.name).sum())
        self.repeated += repeated
        self.duplicates += duplicates
        self.quarantined += int((reason != "").sum()) - repeated - duplicates
        for name, rows in found.items():
            examples = self.examples.setdefault(name, [])
            room = EXAMPLES_PER_REASON - len(examples)
            shown = chunk.iloc[rows[:room]][[FILE, LINE, *EVENT_COLUMNS]]
            examples += shown.astype(object).where(shown.notna(), None).to_dict("records")


@dataclass
class Screening:
    """Rows that were checked by the rules.

    Attributes:
        raw: the log or batch that they are from.
        out: folder with their `events.parquet` and `quarantine.parquet`, `impressions.parquet`,
            and `impressions_quarantine.parquet` where there are impressions.
        expectations: the suites that were checked, with their tallies.
        counts: numbers of rows by result.
        shown: those of impressions; None where there are none.
        notes: on how the rows were read.
    """

    raw: RawLog
    out: Path
    limits: Validate
    expectations: Expectations = field(default_factory=Expectations)
    counts: Counts = field(default_factory=Counts)
    shown: ShownCounts | None = None
    notes: list[FileProblem] = field(default_factory=list)

    def judge(self, rules: Sequence[Rule], figures: Mapping[str, float | None]) -> None:
        """Check figures of the rows as a whole, in columns of these names, and those of lists."""
        if self.shown is not None:
            rules = [*rules, *impressions_rules(self.limits)]
            figures = {**figures, **self.shown.figures()}
        self.expectations.add("batch", rules)
        self.expectations.check("batch", pd.DataFrame([figures]).astype("float64"))

    @property
    def broken(self) -> list[Tally]:
        """Broken rules that refuse all rows: of all suites but those that quarantine."""
        return [
            tally
            for suite, tallies in self.expectations.tallies.items()
            for tally in tallies
            if suite not in (EVENTS, IMPRESSIONS) and tally.broken and tally.rule.gate
        ]

    def reasons(self) -> list[str]:
        """The reasons for a refusal in one line each: found, expected, fix."""
        lines = []
        for tally in self.broken:
            found = tally.examples[0] if tally.examples else f"{tally.broken:,} rows"
            short = f"{found:.4g}" if isinstance(found, float) else repr(found)
            rule = tally.rule
            lines.append(f"{rule.name}: found {short}, expected {rule.expected}; {rule.fix}")
        return lines

    def bad_rows(self) -> list[str]:
        """One line for each broken rule with its number of rows; empty if no row is bad."""
        lines = []
        counts, shown = self.counts, self.shown
        if counts.quarantined:
            share = counts.quarantined_share
            lines += [f"{counts.quarantined:,} of {counts.rows:,} rows ({share:.1%}) are bad:"]
            lines += self._broken_rows(EVENTS)
        if shown is not None and shown.quarantined:
            lines += [
                f"{shown.quarantined:,} of {shown.rows:,} rows of impressions are left out, with "
                f"{shown.lists - shown.accepted_lists:,} of {shown.lists:,} lists:"
            ]
            lines += self._broken_rows(IMPRESSIONS)
        return lines

    def _broken_rows(self, suite: str) -> list[str]:
        return [
            f"  {tally.broken:,} x {tally.rule.name}; {tally.rule.fix}"
            for tally in self.expectations.tallies[suite]
            if tally.broken and tally.rule.gate
        ]

    def publish(self, target: Path, *, keep_tables: bool) -> None:
        """Move the outputs to `target`; refused rows leave no tables for a later stage to read."""
        if not keep_tables:
            for name in ("events", "items", "users", "impressions"):
                (self.out / f"{name}.parquet").unlink(missing_ok=True)
        with atomic_folder(target) as folder:
            for path in self.out.iterdir():
                shutil.move(path, folder / path.name)


def screen(
    raw: RawLog,
    cfg: Config,
    scratch: Path,
    *,
    name_of: Callable[[Path], str],
    items: pd.DataFrame | None,
    items_file: Path | None,
    known_events: Path | None = None,
) -> Screening:
    """Check an opened log or batch; write its rows and quarantines to the new `scratch`/out.

    Args:
        raw: the log or batch; its events are read once and staged.
        cfg: the contract's limits and the names of columns.
        scratch: an existing folder.
        name_of: gives the name of a file in the quarantine and in messages.
        items: the known items in column item_id; None if any item is allowed.
        items_file: name of the file that lists them, if there is one.
        known_events: accepted events of earlier batches that are not part of `raw`.

    Raises:
        UserError: there is no row at all, or a file is unreadable.
    """
    screened = Screening(raw, scratch / "out", cfg.validate_)
    screened.out.mkdir()
    files, staged = [name_of(path) for path in raw.sources], scratch / "staged.parquet"
    counts, expectations = screened.counts, screened.expectations
    stage(raw.events, staged)
    mended = mend_ids(staged, [part[EVENTS] for part in raw.parts])
    for name, table, key in (("items", raw.items, ITEM), ("users", raw.users, USER)):
        if table is not None:
            of_key = " and ".join(str(path) for path, its_key, _ in raw.tables if its_key == key)
            expectations.add(name, table_rules(key, of_key))
            expectations.check(name, table[[key]])
    rules = row_rules(cfg.validate_, items_file)
    chunks = check_rows(
        staged,
        rules,
        expectations,
        cfg.validate_.chunk_rows,
        items,
        known_events=known_events,
        limits=cfg.validate_,
    )
    counts.rows = pq.read_metadata(staged).num_rows
    left_out = [np.empty(0, np.int64)]
    with pq.ParquetWriter(screened.out / "quarantine.parquet", QUARANTINE_SCHEMA) as quarantine:
        for chunk, found in chunks:
            reason = join_reasons(found, rules, len(chunk))
            bad = reason != ""
            chunk = chunk.assign(file=np.array(files, dtype=object)[chunk[SOURCE].to_numpy()])
            refused = chunk[bad].assign(reason=reason[bad])
            quarantine.write_table(as_table(refused, QUARANTINE_SCHEMA))
            counts.add(reason, found, chunk)
            left_out.append(refused[ROW].to_numpy())
    if counts.rows == 0:
        raise UserError(f"{', '.join(files)} has no rows: expected one event a row")
    write_events(staged, np.concatenate(left_out), screened.out / "events.parquet")
    if raw.impressions is None:
        empty_impressions(screened.out)
    else:
        screened.shown = screen_impressions(
            raw.impressions,
            raw.shown,
            cfg,
            scratch,
            out=screened.out,
            files=[name_of(file) for path in raw.shown for file in parts_of(path)],
            expectations=expectations,
        )
    columns = column_names(cfg.data)
    screened.notes += notes_on_log(raw, staged, columns, mended, counts, items, items_file)
    return screened


def check_rows(
    staged: Path,
    rules: Sequence[Rule],
    expectations: Expectations,
    chunk_rows: int,
    items: pd.DataFrame | None,
    *,
    known_events: Path | None = None,
    limits: Validate | None = None,
) -> Iterator[tuple[pd.DataFrame, dict[str, np.ndarray]]]:
    """Chunks of the staged rows, as `prepare` makes them, with the positions that break each rule.

    With the `limits` of the rules, rows that surely break none are left out but for a sample
    (`suspects.py`); they count as checked. The other arguments are as in `screen`.
    """
    within, repeated = copies(staged)
    if known_events is not None:
        repeated = repeated_from(staged, known_events)
    expectations.add("events", rules)
    known = None if items is None else pd.Index(items[ITEM].dropna().unique())
    now, rows = int(time.time()), pq.read_metadata(staged).num_rows
    suspect = judged = np.arange(rows)
    if limits is not None:
        suspect = suspects(staged, limits, now=now, known=known)
        suspect = np.unique(np.concatenate([suspect, within, repeated]))
        judged = with_sample(suspect, rows)
    for frame in tqdm(staged_rows(staged, judged, chunk_rows), desc="check", disable=None):
        chunk = prepare(frame, now=now, copies=within, repeated=repeated, known_items=known)
        found = expectations.check("events", chunk)
        broken = chunk[ROW].to_numpy()[np.unique(np.concatenate([*found.values(), []])).astype(int)]
        if not np.isin(broken, suspect).all():
            raise RuntimeError(f"rows {broken} break a rule that the scan for suspects lacks")
        yield chunk, found
    without = [ITEM_KNOWN] if known is None else []
    expectations.passed("events", rows - len(judged), without=without)


def write_events(staged: Path, left_out: np.ndarray, target: Path) -> None:
    """Write the staged rows but those whose sorted numbers are `left_out`, times as numbers."""

    def accepted() -> Iterator[pa.Table]:
        with pq.ParquetFile(staged) as source:
            for batch in source.iter_batches(EVENTS_AT_A_TIME, columns=EVENTS_SCHEMA.names):
                if (bad := among(left_out, batch[ROW].to_numpy())).any():
                    batch = batch.filter(pa.array(~bad))
                place = batch.schema.get_field_index(TIMESTAMP)
                batch = batch.set_column(place, TIMESTAMP, whole_seconds(batch[TIMESTAMP]))
                yield pa.Table.from_batches([batch.cast(EVENTS_SCHEMA)])

    text = [name for name in EVENT_COLUMNS if name != TIMESTAMP]
    write_parquet(accepted(), target, EVENTS_SCHEMA, use_dictionary=text)


def whole_seconds(text: pa.Array) -> pa.Array:
    """Accepted times as int64."""
    try:
        return text.cast(pa.int64())
    except pa.ArrowInvalid:  # some end with .0
        return pc.replace_substring_regex(text, r"\.0*$", "").cast(pa.int64())


def as_table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, with its types."""
    return pa.Table.from_pandas(frame[schema.names], schema, preserve_index=False)
