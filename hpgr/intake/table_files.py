"""Parquet and text tables as chunks of text columns, equal whatever file they came from.

Values stay strings as found; the rules of `contract.py` judge them. Only typed Parquet columns are
converted (`spelling.py`): times to whole epoch seconds (a time without a zone is read as UTC).

A table is one file, or a folder of parts as Spark writes it, each part with its own header. In
text a line with too few or too many fields is one bad row rather than the end, and each row knows
its line; `dialect.py` detects the meaning of quotes. Reads the paths it is given, writes nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpgr.intake.contract import (
    ACTION,
    CATEGORIES,
    EVENT_COLUMNS,
    IMPRESSION,
    LABEL,
    LINE,
    RAGGED,
    REQUIRED,
    ROW,
    SOURCE,
    TIMESTAMP,
)
from hpgr.intake.delimited_text import Dialect, Malformed, row_tables
from hpgr.intake.dialect import Quoting, dialect_of, text_header
from hpgr.intake.file_problems import FileProblem, note
from hpgr.intake.raw_file import PARQUET, partition_of, parts_of
from hpgr.intake.spelling import (
    DIGITS_LOST,
    lists_of,
    lost_digits,
    spell,
    spell_any,
    spell_time,
    words,
)
from hpgr.runtime import UserError

WHOLE_ROWS = 1 << 18
Reading = Dialect | Quoting
"""How a text is read: its dialect, or what quotes mean in it and the rest detected."""


def header(path: Path, reading: Reading = "auto") -> list[str]:
    """Names of the columns of a Parquet or text file, in its order, copies included.

    For a folder of parts: those of the first part, and those in the names of its folders.

    Raises:
        UserError: the file is empty or unreadable.
    """
    part = parts_of(path)[0]
    names = _names(part, reading)
    return [*names, *(name for name in partition_of(part, path) if name not in names)]


def _names(part: Path, reading: Reading) -> list[str]:
    """Names in one file."""
    if part.suffix in PARQUET:
        with _opened(part) as file:
            return file.schema_arrow.names
    return list(reading.names) if isinstance(reading, Dialect) else text_header(part)


def dialect_in(part: Path, reading: Reading) -> Dialect | None:
    """The dialect of one file; None for Parquet.

    Raises:
        UserError: see `dialect_of`.
    """
    if part.suffix in PARQUET:
        return None
    return reading if isinstance(reading, Dialect) else dialect_of(part, reading)


def repeated(names: Sequence[str]) -> list[str]:
    """The names that occur more than once."""
    return sorted({name for name in names if names.count(name) > 1})


def suggestion(wanted: str, name: str, names: Sequence[str]) -> str:
    """Advice about column `name`, which data.columns names for `wanted` and no file has."""
    folded = {n.strip().lower(): n for n in names}
    near = [
        folded[match]
        for asked in (name, wanted)
        for match in difflib.get_close_matches(asked.lower(), folded, n=1, cutoff=0.6)
    ]
    hint = f"did you mean {near[0]!r}? Set" if near else "set"
    optional = (
        "" if wanted in (*REQUIRED, IMPRESSION, LABEL) else ", or to null where there is none"
    )
    return f"{hint} data.columns.{wanted} to the name of that column{optional}"


def table_chunks(
    path: Path, columns: dict[str, str], chunk_rows: int, reading: Reading = "auto"
) -> Iterator[pd.DataFrame]:
    """Chunks of a Parquet or text file, or of the parts in a folder one after the other.

    The headers of all parts are checked immediately, before the first chunk is read.

    Args:
        path: the file or folder.
        columns: the name in the file of each of our columns.
        chunk_rows: maximum rows of a chunk.
        reading: how a text is read.

    Returns:
        Frames as `RawLog.events` describes them; `row` counts through all parts, `line` within one,
        and `source` is the number of the part in `parts_of(path)`.

    Raises:
        UserError: a file is empty, lacks a column, is not UTF-8 text, or has ambiguous quotes.
    """
    return _numbered(_parts(path, columns, reading), chunk_rows)


def _numbered(parts: Sequence[_Part], chunk_rows: int) -> Iterator[pd.DataFrame]:
    rows = 0
    for source, part in enumerate(parts):
        for columns, lines, ragged in part.chunks(chunk_rows):
            length = len(lines)
            none = words(pa.nulls(length, pa.string()))
            yield pd.DataFrame(
                dict.fromkeys(EVENT_COLUMNS, none)
                | columns
                | {
                    ROW: np.arange(rows, rows + length),
                    SOURCE: source,
                    LINE: np.asarray(lines),
                    RAGGED: words(ragged),
                }
            )
            rows += length


def table_whole(
    path: Path, columns: dict[str, str], reading: Reading = "auto"
) -> tuple[pd.DataFrame, list[FileProblem]]:
    """A whole table of items or users as columns of text, and notes; see `table_chunks`.

    In Parquet a list column for CATEGORIES stays lists, and the id column must be plain. In the
    others nested values become JSON, and bytes that are not text become hex digits, each with a
    note; what Arrow cannot convert is left out, with a note.

    Raises:
        UserError: as `table_chunks`; or a line has another number of fields than the header, or
            there is no row.
    """
    frames, notes = [], []
    for part in _parts(path, columns, reading):
        if part.dialect is None:
            frame, more = _whole_parquet(part)
            notes += more
        else:
            frame = _whole_text(part)
        if len(frame):
            frames.append(frame)
    if not frames:
        raise UserError(f"{path} has no rows: expected one for each id")
    table = pd.concat(frames, ignore_index=True)
    return table[[name for name in columns if name in table]], notes


def _whole_text(part: _Part) -> pd.DataFrame:
    frames = [pd.DataFrame()]
    for columns, lines, ragged in part.chunks(WHOLE_ROWS):
        if len(bad := np.flatnonzero(pc.is_valid(ragged))):
            raise UserError(
                f"{part.path}, line {lines[bad[0]]}: {ragged[bad[0]]} "
                f"({len(bad)} such lines); quote values that hold the separator"
            )
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def _whole_parquet(part: _Part) -> tuple[pd.DataFrame, list[FileProblem]]:
    with _opened(part.path) as file:
        table = file.read(columns=sorted(set(part.inside.values())))
    whole: dict[str, pd.Series] = {}
    notes: list[FileProblem] = []
    if not len(table):
        return pd.DataFrame(), notes
    for ours, theirs in part.inside.items():
        column = table.column(theirs).combine_chunks()
        if ours in REQUIRED:
            whole[ours] = _event_column(part.path, ours, theirs, column)
            continue
        found, fix = f"type {column.type}", ""
        try:
            if ours == CATEGORIES and (lists := lists_of(column)) is not None:
                whole[ours] = pd.Series(lists, dtype=object)
            else:
                text, written = spell_any(column)
                whole[ours] = words(text)
                fix = f"it is kept as text, written as {written}" if written else ""
        except (ValueError, OverflowError, pa.ArrowException) as error:
            found = f"{found} ({error})"
            fix = "it is left out; export it as one of these to keep it"
        if fix:
            expected = "text, numbers or times"
            notes.append(note(part.path, "strange column", theirs, found, expected, fix))
    return pd.DataFrame(whole), notes


# Our columns, the line of each row, and what is wrong with its number of fields.
_Chunk = tuple[dict[str, pd.Series], Sequence[int] | np.ndarray, pa.Array | pa.ChunkedArray]


@dataclass(frozen=True)
class _Part:
    """One file of a table, with a header that was checked.

    Attributes:
        path: the file.
        names: those in its header.
        inside: name in the file of each of our columns.
        folders: value of each of our columns that the file lacks, from the names of its folders.
        dialect: of a text; None for Parquet.
    """

    path: Path
    names: Sequence[str]
    inside: dict[str, str]
    folders: dict[str, str]
    dialect: Dialect | None

    def chunks(self, rows: int) -> Iterator[_Chunk]:
        """The file in pieces of at most `rows` rows."""
        chunks = self._parquet(rows) if self.dialect is None else self._text(self.dialect, rows)
        for columns, lines, ragged in chunks:
            yield columns | self.of_folders(len(lines)), lines, ragged

    def of_folders(self, length: int) -> dict[str, pd.Series]:
        """The columns that the names of folders give."""
        return {
            ours: words(pa.array([value] * length, pa.string()))
            for ours, value in self.folders.items()
        }

    def _parquet(self, rows: int) -> Iterator[_Chunk]:
        start = 1
        with _opened(self.path) as file:
            for batch in file.iter_batches(rows, columns=sorted(set(self.inside.values()))):
                if length := batch.num_rows:
                    columns = {
                        ours: _event_column(self.path, ours, theirs, batch.column(theirs))
                        for ours, theirs in self.inside.items()
                    }
                    yield columns, range(start, start + length), pa.nulls(length, pa.string())
                    start += length

    def _text(self, dialect: Dialect, rows: int) -> Iterator[_Chunk]:
        places = {ours: self.names.index(theirs) for ours, theirs in self.inside.items()}
        used = set(places.values())
        try:
            for table in row_tables(self.path, dialect, len(self.names), used, rows):
                columns = {ours: words(table[str(place)]) for ours, place in places.items()}
                yield columns, table[LINE].to_numpy(), table[RAGGED]
        except Malformed as malformed:
            raise UserError(
                f"{self.path}, row that starts in line {malformed.line}: {malformed.why}; correct "
                f"it, or change data.quoting; now the file is read as {dialect}"
            ) from malformed


def _parts(path: Path, columns: dict[str, str], reading: Reading) -> list[_Part]:
    """The files of a table; `columns` and `reading` are as in `table_chunks`.

    Raises:
        UserError: a header cannot be read, repeats a name, or lacks a column.
    """
    found = []
    for part in parts_of(path):
        names, folders = _names(part, reading), partition_of(part, path)
        if twice := repeated(names):
            raise UserError(
                f"{part}: column {', '.join(map(repr, twice))} occurs more than once in the "
                "header; rename or drop the copies"
            )
        known = [*names, *(name for name in folders if name not in names)]
        absent = {ours: theirs for ours, theirs in columns.items() if theirs not in known}
        if absent:
            raise UserError(
                f"{part} lacks {len(absent)} of the columns named in params.yaml:\n"
                + "".join(f"  {n!r}: {suggestion(ours, n, known)}\n" for ours, n in absent.items())
                + f"It has: {', '.join(known)}"
            )
        inside = {ours: theirs for ours, theirs in columns.items() if theirs in names}
        if not inside:
            raise UserError(
                f"{part} has none of the columns {', '.join(columns.values())}, only the names of "
                "its folders have: expected the rows' own values in the file"
            )
        outside = {ours: folders[name] for ours, name in columns.items() if ours not in inside}
        found.append(_Part(part, names, inside, outside, dialect_in(part, reading)))
    return found


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; unreadable content is a UserError."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{path} is not a whole Parquet file ({error}): export or copy it again"
        ) from error
    except OSError as error:
        if error.errno is not None:  # the system's, not the file's
            raise
        raise UserError(f"{path} is damaged ({error}): export or copy it again") from error


def _event_column(path: Path, ours: str, theirs: str, column: pa.Array) -> pd.Series:
    try:
        text = words(spell_time(column) if ours == TIMESTAMP else spell(column))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f"{path}: column {theirs!r} has type {column.type}, expected text, numbers or times"
        ) from error
    if ours != ACTION and (number := lost_digits(column)):
        raise UserError(
            f"{path}: column {theirs!r} has type {column.type} and holds {number}, which "
            f"is beyond what it holds exactly: {DIGITS_LOST}"
        )
    return text
