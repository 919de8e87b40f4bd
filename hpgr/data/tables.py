"""Parquet and text tables as chunks of text columns, the same whatever they came from.

Reads: the paths it is given. Writes: nothing. Values stay as found, as strings: it is for the
rules of `contract.py` to say what is right. Only a Parquet column that has a type of its own is
spelled out (`spelling.py`): times as whole epoch seconds (a time without a zone is read as UTC).

Text is read row by row with the standard csv module, so that a line with too few or too many
fields is one bad row rather than the end, and each row knows its line.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpgr.data.contract import (
    ACTION,
    CATEGORIES,
    EVENT_COLUMNS,
    RAGGED,
    REQUIRED,
    ROW,
    TIMESTAMP,
)
from hpgr.data.problems import Problem, note
from hpgr.data.raw_file import PARQUET, lines
from hpgr.data.spelling import (
    DIGITS_LOST,
    lists_of,
    lost_digits,
    spell,
    spell_any,
    spell_time,
    words,
)
from hpgr.runtime import UserError

SEPARATORS = (",", "\t", ";", "|")
BLOCK_ROWS = 256
END = "\0"  # put behind the last line: no line holds it, see raw_file.lines
LINE = "line"  # line of the text file, from 1; of Parquet the row, from 1


def header(path: Path) -> list[str]:
    """Names of the columns of a Parquet or CSV file, in its order, copies included.

    Raises:
        UserError: the file is empty or unreadable.
    """
    if path.suffix in PARQUET:
        with _opened(path) as file:
            return file.schema_arrow.names
    first = next(lines(path, "utf-8-sig"), "")
    if not first.strip():
        raise UserError(f"{path} is empty: expected a header line and rows below it")
    return next(csv.reader([first], delimiter=separator_of(first)))


def repeated(names: Sequence[str]) -> list[str]:
    """The names that occur more than once."""
    return sorted({name for name in names if names.count(name) > 1})


def separator_of(first_line: str) -> str:
    """The separator that cuts a header into the most fields; a comma where none does."""
    return max(SEPARATORS, key=lambda s: len(next(csv.reader([first_line], delimiter=s))))


def places(path: Path, columns: dict[str, str]) -> dict[str, int]:
    """Place of each of our columns in the header of `path`; `columns` gives their names in it.

    Raises:
        UserError: the header cannot be read, repeats a name, or lacks a column.
    """
    names = header(path)
    if twice := repeated(names):
        raise UserError(
            f"{path}: column {', '.join(map(repr, twice))} occurs more than once in the header; "
            "rename or drop the copies"
        )
    absent = {wanted: name for wanted, name in columns.items() if name not in names}
    if absent:
        raise UserError(
            f"{path} lacks {len(absent)} of the columns named in params.yaml:\n"
            + "".join(f"  {name!r}: {suggestion(w, name, names)}\n" for w, name in absent.items())
            + f"It has: {', '.join(names)}"
        )
    return {wanted: names.index(name) for wanted, name in columns.items()}


def suggestion(wanted: str, name: str, names: Sequence[str]) -> str:
    """What to do about column `name`, which data.columns names for `wanted` and no file has."""
    folded = {n.strip().lower(): n for n in names}
    near = [
        folded[match]
        for asked in (name, wanted)
        for match in difflib.get_close_matches(asked.lower(), folded, n=1, cutoff=0.6)
    ]
    hint = f"did you mean {near[0]!r}? Set" if near else "set"
    optional = "" if wanted in REQUIRED else ", or to null where there is none"
    return f"{hint} data.columns.{wanted} to the name of that column{optional}"


def table_chunks(path: Path, columns: dict[str, str], chunk_rows: int) -> Iterator[pd.DataFrame]:
    """Chunks of a Parquet or CSV file; `columns` gives the name in the file of each of ours.

    The header is checked at once, before the first chunk is asked for.

    Raises:
        UserError: the file is empty, lacks a column, or is not UTF-8 text.
    """
    found = places(path, columns)
    if path.suffix in PARQUET:
        return parquet_chunks(path, columns, chunk_rows)
    return text_chunks(_csv_rows(path), found, len(header(path)), chunk_rows)


def table_whole(path: Path, columns: dict[str, str]) -> tuple[pd.DataFrame, list[Problem]]:
    """A whole Parquet or CSV file of items or users, `columns` as in `table_chunks`; and notes.

    Raises:
        UserError: as `table_chunks`; and where a line has not as many fields as the header.
    """
    found = places(path, columns)
    if path.suffix in PARQUET:
        return parquet_whole(path, columns)
    return _text_whole(path, _csv_rows(path), found, len(header(path))), []


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row below the header; blank lines are passed over."""
    separator = separator_of(next(lines(path, "utf-8-sig")))
    reader = csv.reader(chain(lines(path, "utf-8-sig"), [END]), delimiter=separator)
    next(reader)
    start = reader.line_num + 1
    try:
        for fields in reader:
            if fields == [END]:
                return
            if fields and fields[-1].endswith(END):
                raise csv.Error("the file ends inside a quoted field")
            if fields:
                yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, row that starts in line {start}: {error}; "
            'look for a quote (") that is never closed'
        ) from error


def plain_rows(path: Path, separator: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each line of a file without header or quotes."""
    for number, line in enumerate(lines(path, encoding, newline="\n"), start=1):
        yield number, line.rstrip("\r\n").split(separator)


def text_chunks(
    rows: Iterator[tuple[int, list[str]]], fields: dict[str, int], width: int, chunk_rows: int
) -> Iterator[pd.DataFrame]:
    """Chunks from lines of `width` fields; `fields` gives the place of each of our columns."""
    start = 0
    while blocks := _blocks(islice(rows, chunk_rows), width):
        table = pa.concat_tables(blocks)
        yield _chunk(
            {ours: words(table.column(str(place))) for ours, place in fields.items()},
            start,
            line=table.column(LINE).to_numpy(),
            ragged=table.column(RAGGED).to_pandas(),
        )
        start += len(table)


def _blocks(rows: Iterator[tuple[int, list[str]]], width: int) -> list[pa.Table]:
    """All of `rows` as tables whose columns are the fields by number, the line, and `ragged`.

    Blocks are small so that few Python lists live at a time: millions of them would keep the
    garbage collector busy for longer than the parsing takes.
    """
    tables = []
    while block := list(islice(rows, BLOCK_ROWS)):
        ragged = [
            None if len(fields) == width else f"{len(fields)} fields instead of {width}"
            for _, fields in block
        ]
        padded = [
            fields if len(fields) == width else (fields + [""] * width)[:width]
            for _, fields in block
        ]
        values = zip(*padded, strict=True)
        columns = {str(n): pa.array(column, pa.string()) for n, column in enumerate(values)}
        columns[LINE] = pa.array([line for line, _ in block], pa.int64())
        columns[RAGGED] = pa.array(ragged, pa.string())
        tables.append(pa.table(columns))
    return tables


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


def plain_whole(path: Path, separator: str, encoding: str, names: Sequence[str]) -> pd.DataFrame:
    """A whole file without header; `names` are its fields."""
    fields = {name: place for place, name in enumerate(names)}
    return _text_whole(path, plain_rows(path, separator, encoding), fields, len(names))


def _text_whole(
    path: Path, rows: Iterator[tuple[int, list[str]]], fields: dict[str, int], width: int
) -> pd.DataFrame:
    blocks = _blocks(rows, width)
    if not blocks:
        raise UserError(f"{path} has no rows: expected one for each id")
    table = pa.concat_tables(blocks)
    bad = table.filter(pc.is_valid(table[RAGGED]))
    if len(bad):
        raise UserError(
            f"{path}, line {bad[LINE][0]}: {bad[RAGGED][0]} "
            f"({len(bad)} such lines); quote values that hold the separator"
        )
    return pd.DataFrame({name: words(table[str(place)]) for name, place in fields.items()})


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


def parquet_whole(path: Path, columns: dict[str, str]) -> tuple[pd.DataFrame, list[Problem]]:
    """Columns as text, a column of lists in place of CATEGORIES as lists; and what to know of them.

    The id column must be plain. Of the others, nested values become JSON and bytes that are no text
    hex digits, each with a note; what Arrow cannot hand over is left out, with a note.
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
            cure = "it is left out; export it as one of these to keep it"
            notes.append(note(path, "strange column", theirs, found, expected, cure))
            continue
        if written:
            found = f"type {column.type}"
            cure = f"it is kept as text, written as {written}"
            notes.append(note(path, "strange column", theirs, found, expected, cure))
    return pd.DataFrame(whole), notes


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file; what cannot be read of it is a UserError."""
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
