"""Text that comes from data, shown as it is: no markup, no control characters, not too long.

Reads and writes nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

# Control characters, line and paragraph separators, and marks that change the direction of writing
# or are invisible. A newline and a tab stay where several lines are printed.
STEERING = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff"
LINES = re.compile(f"[{STEERING}]")
ONE_LINE = re.compile(f"[\t\n{STEERING}]")
SHOWN_CHARACTERS = 60  # of a value in a message: enough to find it


def printable(text: object) -> str:
    """Return `text` with control characters escaped; newlines and tabs stay."""
    return LINES.sub(_written_out, str(text))


def cell(text: object) -> Text:
    """Return one line of text for Rich, without markup and emoji codes."""
    from rich.text import Text

    return Text(ONE_LINE.sub(_written_out, str(text)))


def shown(value: Any) -> str:
    """Return a value from outside in few characters, however long or deep it is."""
    if isinstance(value, dict):
        return f"an object of {len(value):,} keys"
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, int) and value.bit_length() > 8 * SHOWN_CHARACTERS:  # slow to write out
        return f"a number of {value.bit_length():,} bits"
    return short(repr(value[: SHOWN_CHARACTERS + 1] if isinstance(value, str) else value))


def short(text: str, characters: int = SHOWN_CHARACTERS) -> str:
    """Return a text as it is, cut after so many characters."""
    return text if len(text) <= characters else f"{text[:characters]}..."


def _written_out(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
