"""What is wrong with a file, or only worth knowing: where, what was found, what to do.

Reads and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what was found, what was expected, and the cure.

    `line` counts from 1 (of Parquet: the row) and is None where the whole file is meant. A
    problem that is not `serious` is only worth knowing: the file is read all the same. `more`
    says how many further lines have the same `kind` and are not listed.
    """

    file: Path
    kind: str
    line: int | None
    column: str | None
    found: str
    expected: str
    cure: str
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
        text = f"{place}: {self.kind}: found {self.found}, expected {self.expected}; {self.cure}"
        if not self.serious:
            text += " (a note: the file is read all the same)"
        return f"{text}\n  ... and {self.more:,} more lines of this kind" if self.more else text


def note(
    file: Path, kind: str, column: str | None, found: str, expected: str, cure: str
) -> Problem:
    """What is worth knowing of a whole file that is read all the same."""
    return Problem(file, kind, None, column, found, expected, cure, serious=False)
