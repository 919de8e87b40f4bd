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

from hpgr.intake.raw_file import line_blocks, line_ends
from hpgr.intake.text_records import (
    QUOTE,
    Dialect,
    Malformed,
    Quotes,
    Records,
    misplaced,
    records,
    structural_quotes,
)
from hpgr.runtime import UserError

Quoting = Literal["auto", "doubled", "backslash", "none"]
SEPARATORS = (",", "\t", ";", "|")
QUOTED: tuple[Quotes, ...] = ("doubled", "backslash")
MAJORITY = 10  # the evidence for a reading must be so many times that against it
READ_BYTES = 1 << 22
ESCAPED = b'\\"'
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
    if not _holds(path, b'"'):
        return Dialect(separator, "doubled")
    width = len(next(csv.reader([first], delimiter=separator)))
    whole, failed = [], []
    for quotes in QUOTED if _holds(path, ESCAPED) else QUOTED[:1]:
        dialect = Dialect(separator, quotes)
        try:
            whole.append((dialect, _compare(path, dialect, width)))
        except Malformed as malformed:
            failed.append(malformed)
    if not whole:
        _require_plain(path, separator, width, failed)
        return Dialect(separator, "none")
    best = min(found.against + found.ragged for _, found in whole)
    taken = [(d, found) for d, found in whole if found.against + found.ragged == best]
    if len(taken) > 1:
        raise UserError(
            f'{path}, line {_line_of(path, ESCAPED)}: a backslash before a quote (") escapes it, '
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
        lines: of the file.
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

    def add(self, found: Records, quotes: np.ndarray, mark: int, width: int) -> None:
        """Count a block; `quotes` are those that open or close a value."""
        if not len(found.starts):
            return
        data = found.data[: found.stop]
        ends = line_ends(data)
        plain = np.diff(
            np.searchsorted(np.flatnonzero(np.frombuffer(data, np.uint8) == mark), ends), prepend=0
        )
        full = plain == width - 1
        first = np.searchsorted(ends, found.starts)
        count = np.diff(first, append=len(ends))
        full_lines = np.add.reduceat(full.astype(np.int64), first)
        right = found.fields == width
        quoted = np.diff(np.searchsorted(quotes, found.nexts), prepend=0) > 0
        # Rows that a stray quote merges are whole from the first to the last.
        rows = full[first] & full[first + count - 1] & (2 * full_lines > count)
        against = rows & quoted & ((count > 1) | ~right)
        needed = right & quoted & ~against & ((count > 1) | (full_lines == 0))
        if self.against == 0 and against.any():
            place = int(np.flatnonzero(against)[0])
            self.line = int(found.lines[place])
            self.end = self.line + int(count[place]) - 1
        self.against += int(full_lines[against].sum())
        self.tied += int(full_lines[against & right].sum())
        self.needed += int(count[needed].sum())
        self.ragged += int((~right & (found.ends > found.starts)).sum())
        self.wrapping += int((right & quoted & (count == 1) & ~needed).sum())
        self.lines += len(ends)
        self.records += len(found.starts)


def _compare(path: Path, dialect: Dialect, width: int) -> _Comparison:
    """The whole file under a dialect with quotes.

    Raises:
        Malformed: it is not in this dialect.
    """
    comparison = _Comparison()
    for found in records(path, dialect):
        quotes = structural_quotes(found.data, dialect.quotes)[0]
        comparison.add(found, quotes, dialect.mark[0], width)
    return comparison


@dataclass
class _Plain:
    """Lines with quotes in a file that no reading with quotes fits.

    Attributes:
        limit: the last line that a reading with quotes reaches.
        line: the last of the `odd` lines up to `limit`.
        ragged: lines that are not as wide as the header.
        whole: lines that are.
        wrapping: lines with quotes around values.
        odd: lines with quotes that neither wrap nor escape.
        unclosed: the line of the file's last quote, if its only fault is that it opens a value.
    """

    limit: int
    line: int
    ragged: int = 0
    whole: int = 0
    wrapping: int = 0
    odd: int = 0
    unclosed: int | None = None

    def add(self, line: int, data: bytes, separator: str, width: int) -> None:
        """Count a block of whole lines that begins at `line`."""
        codes, ends = np.frombuffer(data, np.uint8), line_ends(data)
        quotes = np.flatnonzero(codes == QUOTE)
        if not len(quotes):
            return
        lines = np.searchsorted(ends, quotes)
        separators = np.flatnonzero(codes == ord(separator))
        right = np.diff(np.searchsorted(separators, ends), prepend=0) == width - 1
        having = np.unique(lines)
        self.whole += int(right[having].sum())
        self.ragged += int((~right[having]).sum())
        odd, unclosed = having, False
        for reading in QUOTED:
            dialect = Dialect(separator, reading)
            found = structural_quotes(data, reading)[0]
            of = np.searchsorted(ends, found)
            ranks = np.arange(len(found)) - np.searchsorted(of, of)
            wrong = of[misplaced(codes, found, ranks, dialect)]
            open_lines = np.flatnonzero(np.bincount(of, minlength=len(ends)) % 2)
            if lines[-1] not in wrong and lines[-1] in open_lines:
                unclosed = True
            odd = np.intersect1d(odd, np.union1d(wrong, open_lines))
        if len(known := odd[line + odd <= self.limit]):
            self.line = line + int(known[-1])
        self.odd += len(odd)
        self.wrapping += len(having) - len(odd)
        self.unclosed = line + int(lines[-1]) if unclosed and lines[-1] in odd else None


def _require_plain(path: Path, separator: str, width: int, failed: list[Malformed]) -> None:
    """Refuse a file that no reading with quotes fits, unless its rows are whole without them.

    Raises:
        UserError: its last quote opens a value, or some of its quotes wrap values.
    """
    worst = max(failed, key=lambda malformed: malformed.line)
    plain = _Plain(limit=worst.line, line=worst.line)
    for line, block in line_blocks(path, "utf-8"):
        below = block[line_ends(block)[0] + 1 :] if line == 1 else block
        plain.add(2 if line == 1 else line, below, separator, width)
    if plain.odd == 1 and plain.unclosed is not None:
        raise UserError(
            f'{path}, row that starts in line {plain.unclosed}: a quote (") is opened and never '
            f"closed; close it or remove it, or {STATE}"
        )
    if plain.ragged * MAJORITY > plain.whole or plain.wrapping >= plain.odd:
        raise UserError(
            f'{path}, line {plain.line}: a quote (") neither wraps a whole value nor is escaped in '
            f"one, as in {plain.odd:,} of {plain.whole + plain.ragged:,} lines with quotes, while "
            f"others wrap values; correct these lines, or {STATE}"
        )


def _first_line(path: Path) -> str:
    _, block = next(line_blocks(path, "utf-8"), (1, b"\n"))
    first = block[: line_ends(block)[0] + 1].decode()
    if not first.strip():
        raise UserError(f"{path} is empty: expected a header line and rows below it")
    return first


def _holds(path: Path, wanted: bytes) -> bool:
    """Return True if the bytes occur in the file."""
    tail = b""
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            if wanted in tail + block:
                return True
            tail = block[-len(wanted) + 1 :] if len(wanted) > 1 else b""
    return False


def _line_of(path: Path, wanted: bytes) -> int:
    """The first line that holds the bytes."""
    for line, block in line_blocks(path, "utf-8"):
        if (place := block.find(wanted)) >= 0:
            return line + int(np.searchsorted(line_ends(block), place))
    raise ValueError(f"{path} does not hold {wanted!r}")
