"""Delimited text as Arrow tables of text columns, a record a row, with the line of each.

`text_records.py` cuts the text into whole records and counts their fields; Arrow's CSV reader cuts
these into values. So a record with too few or too many fields is one bad row rather than the end,
each row knows its line, and the two must agree on the number of rows. Reads the file it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc_csv

from hpgr.intake.contract import RAGGED
from hpgr.intake.text_records import Dialect, Malformed, Records, doubled, records
from hpgr.runtime import UserError

LINE = "line"  # line of the text file, from 1; of Parquet the row, from 1


def text_tables(
    path: Path, dialect: Dialect, width: int, places: Sequence[int], chunk_rows: int
) -> Iterator[pa.Table]:
    """The rows of a text file, `chunk_rows` at a time, without blank lines.

    Args:
        path: a text file.
        dialect: how to read it.
        width: number of fields of a good row. Excess fields are cut off, missing ones are empty.
        places: the wanted fields, from 0.
        chunk_rows: rows of each table but the last.

    Returns:
        Tables with a column for each field, named by its number, `line`, and `ragged`: what is
        wrong with the number of fields, missing where it is right.

    Raises:
        UserError: the file is unreadable or not in `dialect`.
    """
    held: list[pa.Table] = []
    for table in _blocks(path, dialect, width, sorted(set(places))):
        held.append(table)
        while sum(map(len, held)) >= chunk_rows:
            joined = pa.concat_tables(held)
            yield joined.slice(0, chunk_rows)
            held = [joined.slice(chunk_rows)]
    if sum(map(len, held)):
        yield pa.concat_tables(held)


def _blocks(path: Path, dialect: Dialect, width: int, places: Sequence[int]) -> Iterator[pa.Table]:
    try:
        for found in records(path, dialect):
            present = found.ends > found.starts
            if present.any():
                yield _table(path, found, present, dialect, width, places)
    except Malformed as malformed:
        raise UserError(
            f"{path}, row that starts in line {malformed.line}: {malformed.why}; correct it, or "
            f"change data.quoting; now the file is read as {dialect}"
        ) from malformed


def _table(
    path: Path,
    found: Records,
    present: np.ndarray,
    dialect: Dialect,
    width: int,
    places: Sequence[int],
) -> pa.Table:
    """The records of one block that are `present`: those that are not blank."""
    data = _squared(found, present, width, dialect.mark)
    if dialect.quotes == "backslash":
        data = doubled(data)
    quoted = dialect.quotes != "none"
    table = pc_csv.read_csv(
        pa.py_buffer(data),
        pc_csv.ReadOptions(
            column_names=[str(place) for place in range(width)],
            block_size=len(data) + 1,
            use_threads=False,
        ),
        pc_csv.ParseOptions(
            delimiter=dialect.mark.decode(),
            quote_char='"' if quoted else False,
            double_quote=quoted,
            newlines_in_values=quoted,
            ignore_empty_lines=False,
        ),
        pc_csv.ConvertOptions(
            column_types={str(place): pa.string() for place in places},
            include_columns=[str(place) for place in places],
            check_utf8=False,  # the blocks are
        ),
    )
    lines, fields = found.lines[present], found.fields[present]
    if len(table) != len(lines):
        raise UserError(
            f"{path}, lines {lines[0]} to {lines[-1]}: {len(lines):,} records were counted, "
            f"{len(table):,} read; export the file again, without line breaks in values"
        )
    ragged = np.full(len(fields), None, dtype=object)
    for place in np.flatnonzero(fields != width):
        ragged[place] = f"{fields[place]} fields instead of {width}"
    return table.append_column(LINE, pa.array(lines, pa.int64())).append_column(
        RAGGED, pa.array(ragged, pa.string())
    )


def _squared(found: Records, present: np.ndarray, width: int, mark: bytes) -> bytes:
    """The records without blank ones, each with `width` fields."""
    wrong = np.flatnonzero(~present | (found.fields != width))
    if not len(wrong):
        return found.data[: found.stop]
    pieces, done = [], 0
    for place in wrong:
        start, end = int(found.starts[place]), int(found.ends[place])
        pieces.append(found.data[done:start])
        done = int(found.nexts[place])
        if present[place]:
            lacking = width - int(found.fields[place])
            if lacking < 0:
                end = int(found.separators[found.first[place] + width - 1])
            pieces.append(found.data[start:end] + mark * max(lacking, 0) + b"\n")
    return b"".join([*pieces, found.data[done : found.stop]])
