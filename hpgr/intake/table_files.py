"""Parquet and text tables as chunks of text columns, equal whatever file they came from.

Values stay strings as found; the rules of `contract.py` judge them. Only typed Parquet columns are
converted (`spelling.py`): times to whole epoch seconds (a time without a zone is read as UTC).

A table is one file, or a folder of parts as Spark writes it, each part with its own header. In
text a line with too few or too many fields is one bad row rather than the end, and each row knows
its line; `dialect.py` detects the meaning of quotes. Reads the paths it is given, writes nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
    RAGGED,
    REQUIRED,
    ROW,
    TIMESTAMP,
)
from hpgr.intake.delimited_text import LINE, text_tables
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
from hpgr.intake.text_records import Dialect
from hpgr.runtime import UserError

SOURCE = "source"  # number of the file that a row is from
WHOLE_ROWS = 1 << 18


def header(path: Path) -> list[str]:
    """Names of the columns of a Parquet or CSV file, in its order, copies included.

    For a folder of parts: those of the first part, and those in the names of its folders.

    Raises:
        UserError: the file is empty or unreadable.
    """
    return _names(parts_of(path)[0], path)


def _names(part: Path, table: Path | None = None) -> list[str]:
    """Names in one file, and in those of its folders that lie below `table`."""
    if part.suffix in PARQUET:
        with _opened(part) as file:
            names = file.schema_arrow.names
    else:
        names = text_header(part)
    folders = {} if table is None else partition_of(part, table)
    return [*names, *(name for name in folders if name not in names)]


def repeated(names: Sequence[str]) -> list[str]:
    """The names that occur more than once."""
    return sorted({name for name in names if names.count(name) > 1})


def places(part: Path, columns: dict[str, str], table: Path) -> dict[str, int]:
    """Place of each of our columns in the header of one file; `columns` gives their names in it.

    Columns that appear only in the names of folders between `table` and the file have no place.

    Raises:
        UserError: the header cannot be read, repeats a name, or lacks a column.
    """
    names = _names(part)
    if twice := repeated(names):
        raise UserError(
            f"{part}: column {', '.join(map(repr, twice))} occurs more than once in the header; "
            "rename or drop the copies"
        )
    known = _names(part, table)
    absent = {wanted: name for wanted, name in columns.items() if name not in known}
    if absent:
        raise UserError(
            f"{part} lacks {len(absent)} of the columns named in params.yaml:\n"
            + "".join(f"  {name!r}: {suggestion(w, name, known)}\n" for w, name in absent.items())
            + f"It has: {', '.join(known)}"
        )
    found = {wanted: names.index(name) for wanted, name in columns.items() if name in names}
    if not found:
        raise UserError(
            f"{part} has none of the columns {', '.join(columns.values())}, only the names of its "
            "folders have: expected the rows' own values in the file"
        )
    return found


def suggestion(wanted: str, name: str, names: Sequence[str]) -> str:
    """Advice about column `name`, which data.columns names for `wanted` and no file has."""
    folded = {n.strip().lower(): n for n in names}
    near = [
        folded[match]
        for asked in (name, wanted)
        for match in difflib.get_close_matches(asked.lower(), folded, n=1, cutoff=0.6)
    ]
    hint = f"did you mean {near[0]!r}? Set" if near else "set"
    optional = "" if wanted in REQUIRED else ", or to null where there is none"
    return f"{hint} data.columns.{wanted} to the name of that column{optional}"


def table_chunks(
    path: Path, columns: dict[str, str], chunk_rows: int, quoting: Quoting = "auto"
) -> Iterator[pd.DataFrame]:
    """Chunks of a Parquet or CSV file, or of the parts in a folder one after the other.

    The headers of all parts are checked immediately, before the first chunk is read.

    Args:
        path: the file or folder.
        columns: the name in the file of each of our columns.
        chunk_rows: maximum rows of a chunk.
        quoting: meaning of quotes in a text, see `dialect_of`.

    Returns:
        Frames as `RawLog.events` describes them; `row` counts through all parts, `line` within one,
        and `source` is the number of the part in `parts_of(path)`.

    Raises:
        UserError: a file is empty, lacks a column, is not UTF-8 text, or has ambiguous quotes.
    """
    dialects = {}
    for part in parts_of(path):
        places(part, columns, path)
        dialects[part] = None if part.suffix in PARQUET else dialect_of(part, quoting)
    return _numbered(
        _part_chunks(part, path, columns, chunk_rows, dialect) for part, dialect in dialects.items()
    )


def _numbered(parts: Iterable[Iterator[pd.DataFrame]]) -> Iterator[pd.DataFrame]:
    rows = 0
    for number, chunks in enumerate(parts):
        for chunk in chunks:
            chunk[ROW] = np.arange(rows, rows + len(chunk))
            chunk[SOURCE] = number
            rows += len(chunk)
            yield chunk


def _part_chunks(
    part: Path, table: Path, columns: dict[str, str], chunk_rows: int, dialect: Dialect | None
) -> Iterator[pd.DataFrame]:
    """Chunks of one file; the names of its folders give the `columns` that it lacks.

    `dialect` is None for Parquet.
    """
    inside = {ours: theirs for ours, theirs in columns.items() if theirs in _names(part)}
    values = partition_of(part, table)
    if dialect is None:
        chunks = parquet_chunks(part, inside, chunk_rows)
    else:
        found, width = places(part, inside, part), len(_names(part))
        chunks = text_chunks(part, dialect, found, width, chunk_rows)
    for chunk in chunks:
        for ours in columns.keys() - inside.keys():
            chunk[ours] = words(pa.array([values[columns[ours]]] * len(chunk), pa.string()))
        yield chunk


def table_whole(
    path: Path, columns: dict[str, str], quoting: Quoting = "auto"
) -> tuple[pd.DataFrame, list[FileProblem]]:
    """A whole Parquet or CSV file of items or users, or a folder of such parts; and notes.

    `columns` and `quoting` are as in `table_chunks`.

    Raises:
        UserError: as `table_chunks`; or a line has another number of fields than the header, or
            there is no row.
    """
    frames, notes = [], []
    for part in parts_of(path):
        found = places(part, columns, path)
        inside = {ours: theirs for ours, theirs in columns.items() if ours in found}
        if part.suffix in PARQUET:
            if part != path and is_empty(part):
                continue
            frame, more = parquet_whole(part, inside)
            notes += more
        else:
            frame = text_whole(part, dialect_of(part, quoting), found, len(_names(part)))
        values = partition_of(part, path)
        for ours in columns.keys() - inside.keys():
            frame[ours] = words(pa.array([values[columns[ours]]] * len(frame), pa.string()))
        frames.append(frame)
    if not any(map(len, frames)):
        raise UserError(f"{path} has no rows: expected one for each id")
    table = pd.concat(frames, ignore_index=True)
    return table[[name for name in columns if name in table]], notes


def text_chunks(
    path: Path, dialect: Dialect, fields: dict[str, int], width: int, chunk_rows: int
) -> Iterator[pd.DataFrame]:
    """Chunks from a text of `width` fields; `fields` gives the place of each of our columns."""
    start = 0
    for table in text_tables(path, dialect, width, list(fields.values()), chunk_rows):
        yield _chunk(
            {ours: words(table.column(str(place))) for ours, place in fields.items()},
            start,
            line=table.column(LINE).to_numpy(),
            ragged=table.column(RAGGED).to_pandas(),
        )
        start += len(table)


def text_whole(path: Path, dialect: Dialect, fields: dict[str, int], width: int) -> pd.DataFrame:
    """A whole text as columns of text, see `text_chunks`.

    Raises:
        UserError: a line does not have `width` fields, or the file is unreadable.
    """
    frames = []
    for table in text_tables(path, dialect, width, list(fields.values()), WHOLE_ROWS):
        bad = table.filter(pc.is_valid(table[RAGGED]))
        if len(bad):
            raise UserError(
                f"{path}, line {bad[LINE][0]}: {bad[RAGGED][0]} "
                f"({len(bad)} such lines); quote values that hold the separator"
            )
        frames.append(
            pd.DataFrame({ours: words(table[str(place)]) for ours, place in fields.items()})
        )
    if not frames:
        return pd.DataFrame({ours: pd.Series(dtype="str") for ours in fields})
    return pd.concat(frames, ignore_index=True)


def _chunk(
    columns: dict[str, pd.Series], start: int, *, line: Sequence[int] | None, ragged: object
) -> pd.DataFrame:
    length = len(next(iter(columns.values())))
    row = np.arange(start, start + length)
    frame = pd.DataFrame(columns)
    for name in EVENT_COLUMNS:
        if name not in frame:
            frame[name] = pd.Series([None] * length, dtype="str")
    frame[ROW] = row
    frame[LINE] = row + 1 if line is None else line
    frame[RAGGED] = pd.Series(ragged, dtype="str", index=frame.index)
    return frame


def parquet_chunks(path: Path, columns: dict[str, str], chunk_rows: int) -> Iterator[pd.DataFrame]:
    """Chunks of a Parquet file with every value spelled out; `columns` as in `table_chunks`."""
    start = 0
    with _opened(path) as file:
        for batch in file.iter_batches(chunk_rows, columns=sorted(set(columns.values()))):
            if batch.num_rows:
                spelled = {
                    ours: _event_column(path, ours, theirs, batch.column(theirs))
                    for ours, theirs in columns.items()
                }
                yield _chunk(spelled, start, line=None, ragged=None)
                start += batch.num_rows


def parquet_whole(path: Path, columns: dict[str, str]) -> tuple[pd.DataFrame, list[FileProblem]]:
    """Columns as text, a list column for CATEGORIES as lists; and notes on them.

    The id column must be plain. In the others nested values become JSON, and bytes that are not
    text become hex digits, each with a note; what Arrow cannot convert is left out, with a note.
    """
    with _opened(path) as file:
        table = file.read(columns=sorted(set(columns.values())))
    if table.num_rows == 0:
        raise UserError(f"{path} has no rows: expected one for each id")
    whole: dict[str, pd.Series] = {}
    notes = []
    for ours, theirs in columns.items():
        column = table.column(theirs).combine_chunks()
        if ours in REQUIRED:
            whole[ours] = _event_column(path, ours, theirs, column)
            continue
        expected = "text, numbers or times"
        try:
            if ours == CATEGORIES and (lists := lists_of(column)) is not None:
                whole[ours] = pd.Series(lists, dtype=object)
                continue
            text, written = spell_any(column)
            whole[ours] = words(text)
        except (ValueError, OverflowError, pa.ArrowException) as error:
            found = f"type {column.type} ({error})"
            fix = "it is left out; export it as one of these to keep it"
            notes.append(note(path, "strange column", theirs, found, expected, fix))
            continue
        if written:
            found = f"type {column.type}"
            fix = f"it is kept as text, written as {written}"
            notes.append(note(path, "strange column", theirs, found, expected, fix))
    return pd.DataFrame(whole), notes


def is_empty(path: Path) -> bool:
    """Return True if a Parquet file has no row."""
    with _opened(path) as file:
        return file.metadata.num_rows == 0


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
