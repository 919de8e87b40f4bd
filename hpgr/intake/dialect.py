"""The dialect of a text file with a header, detected from all its lines.

The separator is the one that splits the header into the most names. The meaning of a quote is
detected by trying: under each reading the lines are cut into records, and their numbers of fields
are compared with the header's. A reading is accepted if the evidence supports it alone; otherwise
the file is refused with the line of the quote, and `data.quoting` must state the meaning. A quote
never loses a row silently. Reads the file it is given.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hpgr.intake.delimited_text import (
    ESCAPED,
    Dialect,
    Malformed,
    PlainRows,
    Quotes,
    Record,
    pieces,
)
from hpgr.intake.raw_file import text_blocks, text_lines
from hpgr.runtime import UserError

Quoting = Literal["auto", "doubled", "backslash", "none"]
SEPARATORS = (",", "\t", ";", "|")
QUOTED: tuple[Quotes, ...] = ("doubled", "backslash")
MAJORITY = 10  # the evidence for a reading must be so many times that against it
ESCAPED_QUOTE = '\\"'
STATE = (
    'set data.quoting in params.yaml to what is meant: doubled (""), backslash (\\"), or none (a '
    "quote is a character like any other)"
)


def text_header(path: Path) -> list[str]:
    """Names in the first line of a text file, copies included.

    Raises:
        UserError: the file is empty or unreadable.
    """
    first = _first_line(path)
    return next(csv.reader([first], delimiter=separator_of(first)))


def separator_of(first_line: str) -> str:
    """The separator that splits a header into the most fields; a comma if none does."""
    return max(SEPARATORS, key=lambda s: len(next(csv.reader([first_line], delimiter=s))))


def dialect_of(path: Path, quoting: Quoting) -> Dialect:
    """The dialect of a text file; `quoting` other than "auto" states what quotes mean.

    Raises:
        UserError: the file is empty or unreadable, or its quotes can be read in several ways.
    """
    first = _first_line(path)
    separator = separator_of(first)
    if quoting != "auto":
        return Dialect(separator, quoting)
    if _line_of(path, '"') is None:
        return Dialect(separator, "doubled")
    width = len(next(csv.reader([first], delimiter=separator)))
    whole, failed = [], []
    escaped = _line_of(path, ESCAPED_QUOTE)
    for quotes in QUOTED[:1] if escaped is None else QUOTED:
        dialect, comparison = Dialect(separator, quotes), _Comparison()
        try:
            for piece in pieces(path, dialect, width):
                comparison.add(piece, separator, width)
            whole.append((dialect, comparison))
        except Malformed as malformed:
            failed.append(malformed)
    if not whole:
        _require_plain(path, separator, width, failed)
        return Dialect(separator, "none")
    best = min(found.against + found.ragged for _, found in whole)
    taken = [(d, found) for d, found in whole if found.against + found.ragged == best]
    if len(taken) > 1:
        raise UserError(
            f'{path}, line {escaped}: a backslash before a quote (") escapes it, '
            f"or is a character like any other: both readings fit; {STATE}"
        )
    dialect, found = taken[0]
    if found.against * MAJORITY > found.needed:
        if found.needed or found.wrapping or found.tied:
            raise UserError(
                f'{path}, line {found.line}: a quote (") begins a value that ends in line '
                f"{found.end}, but where a quote is a character like any other there are whole "
                f"rows here: {found.lines:,} lines below the header are {found.records:,} records "
                f"where quotes wrap values; {STATE}"
            )
        return Dialect(separator, "none")
    return dialect


@dataclass
class _Comparison:
    """A reading with quotes compared with the one without, in numbers of lines.

    Attributes:
        needed: lines that are rows as wide as the header only with quotes.
        against: lines that are whole rows without quotes, but not with quotes, or that become parts
            of one value; `line` to `end` are the first.
        tied: those of `against` that are parts of a good record.
        wrapping: lines that are whole rows in both readings, with quotes around values.
        ragged: records that are not as wide as the header.
        lines: of all records.
        records: of the file.
    """

    needed: int = 0
    against: int = 0
    tied: int = 0
    wrapping: int = 0
    ragged: int = 0
    lines: int = 0
    records: int = 0
    line: int = 0
    end: int = 0

    def add(self, record: Record | PlainRows, separator: str, width: int) -> None:
        """Count a record or plain rows."""
        if isinstance(record, PlainRows):
            self._add_plain(record.raw, separator, width)
            return
        count, right = len(record.lines), len(record.values) == width
        self.lines += count
        self.records += 1
        self.ragged += not right
        if not any('"' in line for line in record.lines):
            return
        full = [line.count(separator) == width - 1 for line in record.lines]
        # Rows that a stray quote merges are whole from the first to the last.
        rows = full[0] and full[-1] and 2 * sum(full) > count
        if rows and (count > 1 or not right):
            if not self.against:
                self.line, self.end = record.line, record.line + count - 1
            self.against += sum(full)
            self.tied += sum(full) * right
        elif right and (count > 1 or not any(full)):
            self.needed += count
        elif right:
            self.wrapping += 1

    def _add_plain(self, raw: bytes, separator: str, width: int) -> None:
        text = np.frombuffer(raw, np.uint8)
        ends = np.flatnonzero(text == ord("\n"))
        self.lines += len(ends)
        self.records += len(ends)
        if b'"' not in raw:
            return
        quotes, separators = (
            np.bincount(
                np.searchsorted(ends, np.flatnonzero(text == ord(mark))), minlength=len(ends)
            )
            for mark in ('"', separator)
        )
        self.needed += int((separators >= width).sum())
        self.wrapping += int(((quotes > 0) & (separators < width)).sum())


def _require_plain(path: Path, separator: str, width: int, failed: list[Malformed]) -> None:
    """Refuse a file that no reading with quotes fits, unless its rows are whole without them.

    Raises:
        UserError: its last quote opens a value, or some of its quotes wrap values.
    """
    doubled, backslash = (Dialect(separator, quotes) for quotes in QUOTED)
    limit = shown = max(malformed.line for malformed in failed)  # none reads beyond this line
    whole = ragged = wrapping = odd = 0
    unclosed = None  # the line of the last quote, if its only fault is that it opens a value
    for number, line in enumerate(text_lines(path), start=1):
        if number == 1 or '"' not in line:
            continue
        if line.count(separator) == width - 1:
            whole += 1
        else:
            ragged += 1
        # With backslashes a quote may be escaped in and out of values.
        texts = [(doubled, line), (backslash, ESCAPED.sub("--", line))]
        unclosed = None
        if any(dialect.values(text.rstrip("\r\n")) is not None for dialect, text in texts):
            wrapping += 1
        else:  # the quotes neither wrap nor escape
            odd += 1
            shown = number if number <= limit else shown
            if any(dialect.is_open(text) for dialect, text in texts):
                unclosed = number
    if odd == 1 and unclosed is not None:
        raise UserError(
            f'{path}, row that starts in line {unclosed}: a quote (") is opened and never '
            f"closed; close it or remove it, or {STATE}"
        )
    if ragged * MAJORITY > whole or wrapping >= odd:
        raise UserError(
            f'{path}, line {shown}: a quote (") neither wraps a whole value nor is escaped in '
            f"one, as in {odd:,} of {whole + ragged:,} lines with quotes, while "
            f"others wrap values; correct these lines, or {STATE}"
        )


def _first_line(path: Path) -> str:
    first = next(text_lines(path), "")
    if not first.strip():
        raise UserError(f"{path} is empty: expected a header line and rows below it")
    return first


def _line_of(path: Path, wanted: str) -> int | None:
    """The first line that holds a text."""
    for block in text_blocks(path):
        if block.raw and wanted.encode() not in block.raw:
            continue
        for number, line in enumerate(block.lines, start=block.line):
            if wanted in line:
                return number
    return None
