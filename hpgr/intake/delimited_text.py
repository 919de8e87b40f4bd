"""The records of a delimited text: their lines and values.

In a well-formed text a quote opens or closes a value, or is escaped in one as the dialect says;
a record ends with the first line outside quotes. Any other text is Malformed: nothing is guessed
here. Reads the file it is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from hpgr.intake.raw_file import MAX_LINE, text_lines

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


def records(path: Path, dialect: Dialect) -> Iterator[Record]:
    """The records of a file below its header, without blank lines.

    Raises:
        Malformed: a quote is out of place or never closed, or a record is too long.
        UserError: see `text_lines`.
    """
    held: list[str] = []  # lines of a record whose last quote is open
    size = 0
    for number, line in enumerate(text_lines(path, dialect.encoding), start=1):
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
                    f'a row is longer than {MAX_LINE:,} characters; look for a quote (") that is '
                    "never closed",
                )
        else:
            raise Malformed(number, 'a quote (") neither wraps a whole value nor is escaped in one')
    if held:
        raise Malformed(number - len(held) + 1, 'a quote (") is opened and never closed')
