"""Problems of a file, and notes on it: where, what was found, what was expected, how to fix it.

Reads the text files it is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hpgr.intake.dialect import Quoting, dialect_of
from hpgr.intake.raw_file import MAX_LINE
from hpgr.intake.text_records import QUOTES_NAMES
from hpgr.runtime import UserError

LINES_PER_KIND = 5
BOM = "\ufeff"
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
    line: int | None
    column: str | None
    found: str
    expected: str
    fix: str
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


def whole_file(path: Path, kind: str, found: str, expected: str, fix: str) -> FileProblem:
    """A problem of a file as a whole."""
    return FileProblem(path, kind, None, None, found, expected, fix)


def unreadable(path: Path, error: UserError) -> FileProblem:
    """The problem of a file that `error` refuses."""
    return whole_file(
        path, "unreadable", str(error), "a readable table", "correct it and try again"
    )


def no_rows(path: Path) -> FileProblem:
    """The problem of a table without rows."""
    return whole_file(path, "no rows", "a header alone", "rows below it", "export the file again")


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
    undecodable, bad = [], []
    bom: list[FileProblem] = []
    # Bytes that are not UTF-8 become lone surrogates, so that they are reported with their lines.
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        while line := file.readline(MAX_LINE):
            number += 1
            crlf += line.endswith("\r\n")
            if number == 1 and line.startswith(BOM):
                found = "EF BB BF before the header"
                fix = "save without it"
                bom = [FileProblem(path, "byte order mark", 1, None, found, "none", fix, False)]
            if not line.isascii() and (byte := NOT_UTF8.search(line)):
                undecodable.append((number, f"byte {ord(byte[0]) - 0xDC00:02X}"))
            if "\0" in line:
                fix = "the file is damaged or not text: export it again"
                bad.append(FileProblem(path, "NUL", number, None, "byte 00", "text", fix))
            if len(line) == MAX_LINE and not line.endswith(("\n", "\r")):
                found = f"more than {MAX_LINE:,} characters"
                fix = "look for lost line breaks"
                bad.append(
                    FileProblem(path, "endless line", number, None, found, "one row a line", fix)
                )
                break
    problems = bom
    if crlf:
        found = f"CRLF in {crlf:,} of {number:,} lines"
        problems.append(
            FileProblem(path, "Windows line ends", None, None, found, "LF", "save with LF", False)
        )
    problems += capped(
        FileProblem(path, "not UTF-8", number, None, byte, "UTF-8 text", "save the file as UTF-8")
        for number, byte in undecodable
    )
    return problems + capped(bad)


def dialect_problems(path: Path, quoting: Quoting) -> Iterator[FileProblem]:
    """Notes on how a text is read."""
    try:
        taken = dialect_of(path, quoting)
    except UserError as error:
        yield unreadable(path, error)
        return
    if taken.quotes != "doubled":
        yield FileProblem(
            path,
            "dialect",
            None,
            None,
            f"that {QUOTES_NAMES[taken.quotes]}",
            f"that {QUOTES_NAMES['doubled']}",
            "if that is wrong, set data.quoting",
            serious=False,
        )


def note(
    file: Path, kind: str, column: str | None, found: str, expected: str, fix: str
) -> FileProblem:
    """A note on a whole file, which is read anyway."""
    return FileProblem(file, kind, None, column, found, expected, fix, serious=False)
