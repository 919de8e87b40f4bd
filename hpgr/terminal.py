"""Text that comes from data, shown as it is: no markup and no control characters.

Reads and writes nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

# Control characters, line and paragraph separators, and marks that change the direction of writing
# or are invisible. A newline and a tab stay where several lines are printed.
STEERING = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff"
LINES = re.compile(f"[{STEERING}]")
ONE_LINE = re.compile(f"[\t\n{STEERING}]")


def printable(text: object) -> str:
    """Return `text` with control characters escaped; newlines and tabs stay."""
    return LINES.sub(_written_out, str(text))


def cell(text: object) -> Text:
    """Return one line of text for Rich, without markup and emoji codes."""
    from rich.text import Text

    return Text(ONE_LINE.sub(_written_out, str(text)))


def _written_out(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
