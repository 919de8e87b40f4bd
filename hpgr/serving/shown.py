"""Values from outside as a message shows them: enough to find them, in few characters.

Reads and writes nothing.
"""

from __future__ import annotations

from typing import Any

SHOWN_CHARACTERS = 60


def shown(value: Any) -> str:
    """A value in few characters, however long or deep it is."""
    if isinstance(value, dict):
        return f"an object of {len(value):,} keys"
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, int) and value.bit_length() > 8 * SHOWN_CHARACTERS:  # slow to write out
        return f"a number of {value.bit_length():,} bits"
    return short(repr(value[: SHOWN_CHARACTERS + 1] if isinstance(value, str) else value))


def short(text: str, characters: int = SHOWN_CHARACTERS) -> str:
    """A text as it is, cut after so many characters."""
    return text if len(text) <= characters else f"{text[:characters]}..."
