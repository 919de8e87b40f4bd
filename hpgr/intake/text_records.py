"""The records of a delimited text: their bounds and numbers of fields.

A file is read in blocks of whole records; numpy finds all line ends, quotes and separators of one
at once. In a well-formed text a line end closes a record if the number of quotes before it is even,
and each quote opens or closes a value or is one half of a pair that stands for a quote. Any other
text is Malformed: nothing is guessed here. Reads the file it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hpgr.intake.raw_file import CR, LF, MAX_LINE, line_blocks, line_ends

Quotes = Literal["doubled", "backslash", "none"]
QUOTE, BACKSLASH = ord('"'), ord("\\")
UNIT = b"\x1f"  # stands for a separator of several characters
SEPARATOR_NAMES = {",": "comma", "\t": "tab", ";": "semicolon"}
QUOTES_NAMES = {
    "doubled": 'a quote in a quoted value is written twice ("")',
    "backslash": 'a quote in a quoted value is written \\"',
    "none": 'a quote (") is a character like any other',
}


@dataclass(frozen=True)
class Dialect:
    """The separator of a text and the meaning of its quotes.

    `separator` is one ASCII character, or several if `quotes` is "none". With `header` the first
    line holds names.
    """

    separator: str
    quotes: Quotes
    encoding: str = "utf-8"
    header: bool = True

    @property
    def mark(self) -> bytes:
        """The one byte between values in the blocks of `records`."""
        return self.separator.encode() if len(self.separator) == 1 else UNIT

    def __str__(self) -> str:
        separator = SEPARATOR_NAMES.get(self.separator, self.separator)
        return f"{separator}-separated; {QUOTES_NAMES[self.quotes]}"


class Malformed(Exception):
    """The text does not fit the dialect: the line of the quote that shows it, and why."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(f"line {line}: {why}")
        self.line, self.why = line, why


@dataclass(frozen=True)
class Records:
    """The whole records at the beginning of `data`, blank lines included.

    Arrays of int64, one entry for each record: `starts` and `ends` (after the last byte, without
    the line end), `nexts` (start of the next record), `lines` (number of the first line, from 1),
    `fields` (their number), and `first` (place of its first separator among `separators`).
    `separators` are the positions of those outside quotes.
    """

    data: bytes
    starts: np.ndarray
    ends: np.ndarray
    nexts: np.ndarray
    lines: np.ndarray
    fields: np.ndarray
    first: np.ndarray
    separators: np.ndarray

    @property
    def stop(self) -> int:
        """End of the whole records in `data`."""
        return int(self.nexts[-1]) if len(self.nexts) else 0


def records(path: Path, dialect: Dialect) -> Iterator[Records]:
    """The records of a file below its header, a block at a time.

    Raises:
        Malformed: a quote is out of place or never closed, or a record is too long.
        UserError: see `line_blocks`.
    """
    held, held_line = b"", 0
    for number, block in _below_header(path, dialect):
        data, line = (held + block, held_line) if held else (block, number)
        found = _whole_records(data, line, dialect)
        for place in np.flatnonzero(found.nexts - found.starts > MAX_LINE):
            record = data[found.starts[place] : found.nexts[place]]
            _require_length(int(found.lines[place]), record)
        yield found
        held = data[found.stop :]
        held_line = line + len(line_ends(data[: found.stop]))
        _require_length(held_line, held)
    if held:
        raise Malformed(held_line, 'a quote (") is opened and never closed')


def _require_length(line: int, record: bytes) -> None:
    if len(record) > MAX_LINE and len(record.decode()) > MAX_LINE:
        raise Malformed(
            line,
            f'a row is longer than {MAX_LINE:,} characters; look for a quote (") that is never '
            "closed",
        )


def _below_header(path: Path, dialect: Dialect) -> Iterator[tuple[int, bytes]]:
    for number, block in line_blocks(path, dialect.encoding):
        below, line = block, number
        if number == 1 and dialect.header:
            below, line = block[line_ends(block)[0] + 1 :], 2
        if len(dialect.separator) > 1:
            below = below.replace(dialect.separator.encode(), UNIT)
        if below:
            yield line, below


def _whole_records(data: bytes, line: int, dialect: Dialect) -> Records:
    codes = np.frombuffer(data, np.uint8)
    ends = closing = line_ends(data)
    separators = np.flatnonzero(codes == dialect.mark[0])
    last = np.arange(len(ends))  # the last line of each record
    if dialect.quotes != "none" and b'"' in data:
        quotes, escapes = structural_quotes(data, dialect.quotes)
        ranks = np.arange(len(quotes))
        wrong = quotes[misplaced(codes, quotes, ranks, dialect)]
        outside = escapes[np.searchsorted(quotes, escapes) % 2 == 0]
        wrong = np.union1d(wrong, outside[codes[outside + 1] == QUOTE] + 1)
        if len(wrong):
            raise Malformed(
                line + int(np.searchsorted(ends, wrong[0])),
                'a quote (") neither wraps a whole value nor is escaped in one',
            )
        last = np.flatnonzero(np.searchsorted(quotes, ends) % 2 == 0)
        closing = ends[last]
        separators = separators[np.searchsorted(quotes, separators) % 2 == 0]
    starts = np.concatenate([[0], closing[:-1] + 1])[: len(closing)]
    pair = (codes[closing] == LF) & (closing > 0) & (codes[closing - 1] == CR)
    first = np.searchsorted(separators, starts)
    return Records(
        data=data,
        starts=starts,
        ends=closing - pair,
        nexts=closing + 1,
        lines=line + np.concatenate([[0], last[:-1] + 1])[: len(last)],
        fields=np.searchsorted(separators, closing) - first + 1,
        first=first,
        separators=separators,
    )


def structural_quotes(data: bytes, quotes: Quotes) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the quotes that no backslash escapes, and of the backslashes that escape."""
    codes = np.frombuffer(data, np.uint8)
    found = np.flatnonzero(codes == QUOTE)
    if quotes != "backslash":
        return found, np.array([], np.int64)
    slashes = np.flatnonzero(codes == BACKSLASH)
    begins = np.diff(slashes, prepend=-2) != 1  # of a run of backslashes
    place = np.arange(len(slashes))
    in_run = place - np.maximum.accumulate(np.where(begins, place, 0))
    escaping = slashes[in_run % 2 == 0]
    escaping = escaping[np.isin(codes[escaping + 1], (QUOTE, BACKSLASH))]
    return found[~np.isin(found, escaping + 1, assume_unique=True)], escaping


def misplaced(
    codes: np.ndarray, quotes: np.ndarray, ranks: np.ndarray, dialect: Dialect
) -> np.ndarray:
    """True for each of `quotes` that neither bounds a value nor is one half of a doubled quote.

    `codes` are whole lines; `ranks` numbers the quotes from a place where none is open, so that
    the even ones open a value.
    """
    opens = ranks % 2 == 0
    border = np.zeros(256, bool)
    border[[dialect.mark[0], LF, CR]] = True
    before = border[codes[quotes - 1]] | (quotes == 0)
    right = np.where(opens, before, border[codes[quotes + 1]])
    if dialect.quotes == "doubled":
        pair = (np.diff(quotes) == 1) & ~opens[:-1] & opens[1:]
        right[:-1] |= pair
        right[1:] |= pair
    return ~right


def doubled(data: bytes) -> bytes:
    """Rewrite well-formed text with backslashes as text with doubled quotes.

    In quoted values an escaped quote becomes two quotes, an escaped backslash one backslash.
    """
    quotes, escapes = structural_quotes(data, "backslash")
    escapes = escapes[np.searchsorted(quotes, escapes) % 2 == 1]
    codes = np.frombuffer(data, np.uint8).copy()
    quoted = codes[escapes + 1] == QUOTE
    codes[escapes[quoted]] = QUOTE
    return np.delete(codes, escapes[~quoted]).tobytes()
