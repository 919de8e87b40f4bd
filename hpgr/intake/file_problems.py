"""Problems of files and rows, and notes on them: where, found, expected, how to fix it.

Reads the text files it is given.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from hpgr.intake.contract import ACTION, ITEM, LINE, ROW, SOURCE, TIMESTAMP, USER, Rule
from hpgr.intake.delimited_text import QUOTES_NAMES
from hpgr.intake.dialect import Quoting, dialect_of
from hpgr.intake.raw_file import MAX_LINE, Absent
from hpgr.intake.time_units import FIXES, advice, kinds_of_dates, shapes
from hpgr.runtime import UserError

LINES_PER_KIND = 5
BOM = "\ufeff"
NOT_WHOLE = "timestamp is not a whole number"
DATE = "timestamp is a date"
KINDS_OF_DATES = 500
NOT_UTF8 = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True)
class FileProblem:
    """One problem: where, what was found, what was expected, and how to fix it.

    `line` counts from 1 (in Parquet: the row) and is None for the whole file. A problem that is not
    `serious` is a note: the file is read anyway. `more` counts further lines of the same `kind`
    that are not listed.
    """

    file: Path
    kind: str
    found: str
    expected: str
    fix: str
    line: int | None = None
    column: str | None = None
    serious: bool = True
    more: int = 0

    def __str__(self) -> str:
        place = ", ".join(
            part
            for part in (
                str(self.file),
                f"line {self.line}" if self.line is not None else "",
                self.column or "",
            )
            if part
        )
        text = f"{place}: {self.kind}: found {self.found}, expected {self.expected}; {self.fix}"
        if not self.serious:
            text += " (a note: the file is read anyway)"
        return f"{text}\n  ... and {self.more:,} more lines of this kind" if self.more else text


def unreadable(path: Path, error: UserError) -> FileProblem:
    """The problem of a file that `error` refuses."""
    if isinstance(error, Absent):
        return FileProblem(path, "missing", "nothing", "a file or folder", "correct the path")
    fix = "correct it and try again"
    return FileProblem(path, "unreadable", str(error), "a readable table", fix)


def no_rows(path: Path) -> FileProblem:
    """The problem of a table without rows."""
    return FileProblem(path, "no rows", "a header alone", "rows below it", "export the file again")


def capped(problems: Iterable[FileProblem]) -> list[FileProblem]:
    """The first LINES_PER_KIND of one kind; the last of them counts the others."""
    found = list(problems)
    listed, more = found[:LINES_PER_KIND], len(found) - LINES_PER_KIND
    if more > 0:
        listed[-1] = replace(listed[-1], more=more)
    return listed


def text_problems(path: Path) -> list[FileProblem]:
    """Problems of encoding, line ends and length of the lines of a text file."""
    crlf = number = 0
    notes, undecodable, bad = [], [], []

    def problem(kind: str, found: str, expected: str, fix: str) -> FileProblem:
        return FileProblem(path, kind, found, expected, fix, line=number)

    # Bytes that are not UTF-8 become lone surrogates, so that they are reported with their lines.
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        while line := file.readline(MAX_LINE):
            number += 1
            crlf += line.endswith("\r\n")
            if number == 1 and line.startswith(BOM):
                bom = "EF BB BF before the header"
                found = problem("byte order mark", bom, "none", "save without it")
                notes.append(replace(found, serious=False))
            if not line.isascii() and (byte := NOT_UTF8.search(line)):
                shown = f"byte {ord(byte[0]) - 0xDC00:02X}"
                fix = "save the file as UTF-8"
                undecodable.append(problem("not UTF-8", shown, "UTF-8 text", fix))
            if "\0" in line:
                fix = "the file is damaged or not text: export it again"
                bad.append(problem("NUL", "byte 00", "text", fix))
            if len(line) == MAX_LINE and not line.endswith(("\n", "\r")):
                length, fix = f"more than {MAX_LINE:,} characters", "look for lost line breaks"
                bad.append(problem("endless line", length, "one row a line", fix))
                break
    if crlf:
        lines = f"CRLF in {crlf:,} of {number:,} lines"
        notes.append(note(path, "Windows line ends", None, lines, "LF", "save with LF"))
    return [*notes, *capped(undecodable), *capped(bad)]


def dialect_problems(path: Path, quoting: Quoting) -> Iterator[FileProblem]:
    """A note on quotes that are read in a rare way.

    Raises:
        UserError: see `dialect_of`.
    """
    quotes = dialect_of(path, quoting).quotes
    if quotes != "doubled":
        found, expected = f"that {QUOTES_NAMES[quotes]}", f"that {QUOTES_NAMES['doubled']}"
        yield note(path, "dialect", None, found, expected, "if that is wrong, set data.quoting")


def note(
    file: Path, kind: str, column: str | None, found: str, expected: str, fix: str
) -> FileProblem:
    """A note on a whole file, which is read anyway."""
    return FileProblem(file, kind, found, expected, fix, column=column, serious=False)


class Listing:
    """Problems of the rows of one table, a limited number of each kind."""

    def __init__(self, files: Sequence[Path], columns: dict[str, str]) -> None:
        """`files` are the rows' files by their `source`."""
        self._files, self._columns = files, columns
        self._listed: dict[str, list[FileProblem]] = {}
        self._counts: Counter[str] = Counter()
        self._dates: list[str] = []

    def add(self, frame: pd.DataFrame, found: dict[str, np.ndarray], rules: Sequence[Rule]) -> None:
        """Add the rows of `frame` that break each of `rules`; `found` gives their positions."""
        for rule in rules:
            rows = frame.iloc[found.get(rule.name, [])]
            if rule.name == NOT_WHOLE:
                found_shapes = shapes(rows[TIMESTAMP])
                for shape in found_shapes.unique():
                    kind, fix = f"timestamp is {shape}", FIXES.get(shape, rule.fix)
                    shaped = rows[found_shapes == shape]
                    self._note(replace(rule, name=kind, fix=fix), shaped)
                    if kind == DATE:
                        kinds = pd.Series([*self._dates, *shaped[TIMESTAMP]], dtype="str")
                        self._dates = kinds_of_dates(kinds)[:KINDS_OF_DATES]
            else:
                self._note(rule, rows)

    def _note(self, rule: Rule, rows: pd.DataFrame) -> None:
        listed = self._listed.setdefault(rule.name, [])
        for _, row in rows.head(LINES_PER_KIND - len(listed)).iterrows():
            listed.append(
                FileProblem(
                    file=self._files[row.get(SOURCE, 0)],
                    kind=rule.name,
                    line=int(row[LINE]),
                    column=self._columns.get(rule.column),
                    found=_found(rule, row),
                    expected=rule.expected,
                    fix=rule.fix,
                    serious=rule.gate,
                )
            )
        self._counts[rule.name] += len(rows)

    def problems(self) -> list[FileProblem]:
        """All problems in order of files and lines; the last of a kind counts those not listed."""
        if self._dates:
            how = advice(self._dates)
            self._listed[DATE] = [replace(p, fix=how) for p in self._listed[DATE]]
        for kind, listed in self._listed.items():
            if more := self._counts[kind] - len(listed):
                listed[-1] = replace(listed[-1], more=more)
        order = {file: number for number, file in enumerate(self._files)}
        found = (p for ps in self._listed.values() for p in ps)
        return sorted(found, key=lambda p: (order[p.file], p.line or 0))


def _found(rule: Rule, row: pd.Series) -> str:
    if rule.column == ROW:
        return "a copy of an earlier line: " + ", ".join(
            str(row[name]) for name in (USER, ITEM, TIMESTAMP, ACTION) if not pd.isna(row[name])
        )
    value = row[rule.column]
    return "nothing (empty, or a word such as nan or null)" if pd.isna(value) else repr(value)


def mixed(path: Path, column: str, shapes: Counter[str]) -> Iterator[FileProblem]:
    """A problem if times are written in several ways; `shapes` counts each."""
    if len(shapes) > 1:
        found = ", ".join(f"{count:,} x {shape}" for shape, count in shapes.most_common())
        yield FileProblem(
            path,
            "mixed formats of time",
            found,
            "epoch seconds throughout",
            "find out where the log changes its format, and convert the rest",
            column=column,
        )
