"""Problems of a file, and notes on it: where, what was found, what was expected, how to fix it.

Reads the text files it is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hpgr.intake.delimited_text import QUOTES_NAMES
from hpgr.intake.dialect import Quoting, dialect_of
from hpgr.intake.raw_file import MAX_LINE
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
    """Notes on how a text is read."""
    try:
        taken = dialect_of(path, quoting)
    except UserError as error:
        yield unreadable(path, error)
        return
    if taken.quotes != "doubled":
        yield note(
            path,
            "dialect",
            None,
            f"that {QUOTES_NAMES[taken.quotes]}",
            f"that {QUOTES_NAMES['doubled']}",
            "if that is wrong, set data.quoting",
        )


def note(
    file: Path, kind: str, column: str | None, found: str, expected: str, fix: str
) -> FileProblem:
    """A note on a whole file, which is read anyway."""
    return FileProblem(file, kind, found, expected, fix, column=column, serious=False)
