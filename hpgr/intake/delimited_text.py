"""The records of a delimited text: their lines and values.

In a well-formed text a quote opens or closes a value, or is escaped in one as the dialect says;
a record ends with the first line outside quotes. Any other text is Malformed: nothing is guessed
here. Blocks of the text in which nothing can be misread are cut by Arrow, the others line by line.
Reads the file it is given.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv

from hpgr.intake.contract import LINE, RAGGED
from hpgr.intake.raw_file import BOM, MAX_LINE, Block, lone_returns, text_blocks

Quotes = Literal["doubled", "backslash", "none"]
SEPARATOR_NAMES = {",": "comma", "\t": "tab", ";": "semicolon"}
QUOTES_NAMES = {
    "doubled": 'a quote in a quoted value is written twice ("")',
    "backslash": 'a quote in a quoted value is written \\"',
    "none": 'a quote (") is a character like any other',
}
# A quoted value without the quote that closes it. No repetition gives a character back, so that
# the time grows linearly with the text.
OPEN = {
    "doubled": r'"[^"]*+(?:""[^"]*+)*+',
    "backslash": r'"[^"\\]*+(?:\\.[^"\\]*+)*+',
}
RECORDS_AT_A_TIME = 1 << 13
ESCAPED = re.compile(r'\\(["\\])')  # with backslashes


@dataclass(frozen=True)
class Dialect:
    """The separator of a text and the meaning of its quotes.

    `separator` is one character, or several if `quotes` is "none". `names` are those of the fields;
    without them the first line holds names.
    """

    separator: str
    quotes: Quotes
    encoding: str = "utf-8"
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        separator = SEPARATOR_NAMES.get(self.separator, self.separator)
        return f"{separator}-separated; {QUOTES_NAMES[self.quotes]}"

    def values(self, text: str) -> list[str] | None:
        """The values of a record without its line end; None if its quotes are out of place."""
        if self.quotes == "none" or '"' not in text:
            return text.split(self.separator)
        found = self._value.findall(self.separator + text)
        if sum(map(len, found)) + len(found) != len(text) + 1:  # something lies between them
            return None
        return [self._plain(value) if value[:1] == '"' else value for value in found]

    def is_open(self, line: str) -> bool:
        """Return True if the quotes of a line are in place, and the last one is not closed."""
        return self._open.fullmatch(self.separator + line) is not None

    def _plain(self, quoted: str) -> str:
        inside = quoted[1:-1]
        return inside.replace('""', '"') if self.quotes == "doubled" else ESCAPED.sub(r"\1", inside)

    @cached_property
    def _value(self) -> re.Pattern[str]:
        mark = re.escape(self.separator)
        return re.compile(f'{mark}({OPEN[self.quotes]}"|[^"{mark}]*+)', re.DOTALL)

    @cached_property
    def _open(self) -> re.Pattern[str]:
        mark = re.escape(self.separator)
        return re.compile(f"(?:{self._value.pattern}(?={mark}))*+{mark}{OPEN[self.quotes]}", re.S)


class Malformed(Exception):
    """The text does not fit the dialect: the line of the quote that shows it, and why."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(f"line {line}: {why}")
        self.line, self.why = line, why


class Record(NamedTuple):
    """A row of a text: the number of its first line, from 1, its lines with their ends, values."""

    line: int
    lines: tuple[str, ...]
    values: list[str]


class PlainRows(NamedTuple):
    """Rows of a text that are one line each and as wide as the header.

    `raw` are their bytes, `cells` a table as `row_tables` gives it.
    """

    raw: bytes
    cells: pa.Table


def row_tables(
    path: Path, dialect: Dialect, width: int, places: Collection[int], rows: int
) -> Iterator[pa.Table]:
    """The records of a file, see `pieces`, in tables of `rows` rows; the last may have fewer.

    Returns:
        Tables with LINE, RAGGED and a column of text for each of `places`, its name the place.
        Excess fields of a record are cut off, missing ones are empty.
    """
    waiting: list[pa.Table] = []
    single: list[Record] = []
    for piece in pieces(path, dialect, width, places):
        if isinstance(piece, Record):
            single.append(piece)
            if len(single) < RECORDS_AT_A_TIME:
                continue
        waiting.append(_table_of(single, width, places))
        single = []
        if isinstance(piece, PlainRows):
            waiting.append(piece.cells)
        while sum(map(len, waiting)) >= rows:
            whole = pa.concat_tables(waiting)
            yield whole[:rows]
            waiting = [whole[rows:]]
    whole = pa.concat_tables([*waiting, _table_of(single, width, places)])
    for start in range(0, len(whole), rows):
        yield whole[start : start + rows]


def pieces(
    path: Path, dialect: Dialect, width: int, places: Collection[int] = (0,)
) -> Iterator[PlainRows | Record]:
    """The records of a file below its header, without blank lines, many together where possible.

    Args:
        path: the file.
        dialect: how it is read.
        width: number of fields in the header.
        places: those of the fields that tables need, from 0.

    Raises:
        Malformed: a quote is out of place or never closed, or a record is too long.
        UserError: see `text_lines`.
    """
    held: list[str] = []  # lines of a record whose last quote is open
    size = 0
    for block in text_blocks(path, dialect.encoding):
        if not held and (plain := _plain_rows(block, dialect, width, places)) is not None:
            yield plain
            continue
        for number, line in enumerate(block.lines, start=block.line):
            bare = line[:-2] if line.endswith("\r\n") else line[:-1]
            if (number == 1 and not dialect.names) or not (held or bare):
                continue
            opened = '"' if held else ""  # a line inside a value is read as if it began the value
            values = dialect.values(opened + bare)
            if values is not None:
                if held:
                    values = dialect.values("".join(held) + bare) or []
                yield Record(number - len(held), (*held, line), values)
                held, size = [], 0
            elif dialect.is_open(opened + line):
                held.append(line)
                size += len(line)
                if size > MAX_LINE:
                    raise Malformed(
                        number - len(held) + 1,
                        f'a row is longer than {MAX_LINE:,} characters; look for a quote (") that '
                        "is never closed",
                    )
            else:
                why = 'a quote (") neither wraps a whole value nor is escaped in one'
                raise Malformed(number, why)
    if held:
        raise Malformed(number - len(held) + 1, 'a quote (") is opened and never closed')


def _plain_rows(
    block: Block, dialect: Dialect, width: int, places: Collection[int]
) -> PlainRows | None:
    """The rows of a block by Arrow's reader; None where it might read them in another way."""
    line, raw = block.line, block.raw
    if lone_returns(raw):
        return None
    if line == 1 and not dialect.names:
        line, raw = 2, raw.partition(b"\n")[2]
    separator = dialect.separator
    if len(separator) > 1 and b"\x1f" not in raw:  # Arrow takes one character
        raw, separator = raw.replace(separator.encode(), b"\x1f"), "\x1f"
    has_quotes = dialect.quotes != "none" and b'"' in raw
    if (
        len(separator) > 1
        or (has_quotes and not _wrap_values(raw, dialect))
        or (dialect.encoding != "utf-8" and not raw.isascii())
        or raw.startswith(BOM)  # Arrow takes it off wherever a text begins
    ):
        return None
    names = [str(place) for place in range(width)]
    used = [str(place) for place in sorted(places)]
    try:
        cells = arrow_csv.read_csv(
            pa.BufferReader(raw),
            arrow_csv.ReadOptions(use_threads=False, block_size=1 << 30, column_names=names),
            arrow_csv.ParseOptions(delimiter=separator, quote_char='"' if has_quotes else False),
            arrow_csv.ConvertOptions(
                check_utf8=False,
                column_types=dict.fromkeys(used, pa.string()),
                include_columns=used,
            ),
        )
    except pa.ArrowInvalid:  # no line, or one with another number of fields
        return None
    if len(cells) != raw.count(b"\n"):  # a blank line, or a line break in a value
        return None
    cells = cells.append_column(LINE, pa.array(np.arange(line, line + len(cells))))
    return PlainRows(raw, cells.append_column(RAGGED, pa.nulls(len(cells), pa.string())))


def _wrap_values(raw: bytes, dialect: Dialect) -> bool:
    """Return True if each quote in whole lines begins or ends a value, and none is inside one."""
    if dialect.quotes == "backslash" and b"\\" in raw:
        return False
    text = np.frombuffer(raw, np.uint8)
    quotes = np.flatnonzero(text == ord('"'))
    if len(quotes) % 2:
        return False
    is_border = np.isin(np.arange(256), list(f"{dialect.separator}\r\n".encode()))
    before, after = text[quotes[::2] - 1], text[quotes[1::2] + 1]  # the last byte is a line end
    return bool(is_border[before].all() and is_border[after].all())


def _table_of(records: Sequence[Record], width: int, places: Collection[int]) -> pa.Table:
    """Single records as a table of `row_tables`."""
    found = [record.values for record in records]
    cells = {
        str(place): pa.array([v[place] if place < len(v) else "" for v in found], pa.string())
        for place in sorted(places)
    }
    wrong = [None if len(v) == width else f"{len(v)} fields instead of {width}" for v in found]
    lines = [record.line for record in records]
    return pa.table(
        cells | {LINE: pa.array(lines, pa.int64()), RAGGED: pa.array(wrong, pa.string())}
    )
