"""Several values in one cell: a list in Parquet, or text that a separator or brackets divide.

Reads and writes nothing.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Iterable

import pandas as pd

from hpgr.intake.spelling import WHOLE, spell_value

BRACKETS = {"[": "]", "(": ")", "{": "}"}
# ['Drama' 'War'] and [0. 3.]: numpy's print of an array. Python would join the two words.
VALUE = r"""(?:'[^']*'|"[^"]*"|-?[0-9]+(?:\.[0-9]*)?)"""
NUMPY = re.compile(rf"\s*{VALUE}(?:\s+{VALUE})+\s*|\s*[0-9]+\.\s*")
NUMPY_VALUE = re.compile(r"""'([^']*)'|"([^"]*)"|(\S+)""")
NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]*)?")


def split(values: pd.Series, separator: str) -> tuple[pd.Series, str | None]:
    """The list of values of each cell, and a note where some text looks like lists.

    A value counts once in a cell; empty ones and words for "no value" do not count. Text is split
    at `separator`, unless every cell is a list in JSON, Python or a similar form.
    """
    text = [value.strip() for value in values if isinstance(value, str)]
    bracketed = [cell for cell in text if _is_bracketed(cell)]
    as_lists = 0 < len(bracketed) == len(text)
    cells = [_parts(value, separator, as_lists=as_lists) for value in values]
    if text:
        cells = _without_point_zero(cells)
    note = None
    if as_lists:
        note = f"text such as {bracketed[0]!r} is read as lists"
    elif any(_literal(f"[{cell[1:-1]}]") is not None for cell in bracketed):
        note = (
            f"{len(bracketed):,} of {len(text):,} cells are written as lists, such as "
            f"{bracketed[0]!r}, and are cut at {separator!r} like the others"
        )
    return pd.Series(cells, index=values.index, dtype=object), note


def _is_bracketed(cell: str) -> bool:
    return len(cell) > 1 and BRACKETS.get(cell[0]) == cell[-1]


def _parts(value: object, separator: str, *, as_lists: bool) -> list[str]:
    if isinstance(value, str):
        found = _listed(value.strip()) if as_lists else value.split(separator)
    else:
        found = value if isinstance(value, Iterable) else []
    spelled = (spell_value(one) for one in _flat(found))
    return list(dict.fromkeys(one for one in spelled if one))


def _flat(values: Iterable[object]) -> Iterable[object]:
    for value in values:
        if isinstance(value, (list, tuple, set)):
            yield from _flat(value)
        else:
            yield value


def _listed(cell: str) -> Iterable[object]:
    """The values of a cell in brackets."""
    inside = cell[1:-1]
    if NUMPY.fullmatch(inside):
        found = ["".join(match) for match in NUMPY_VALUE.findall(inside)]
        return [re.sub(r"\.$", "", one) if NUMBER.fullmatch(one) else one for one in found]
    if cell[0] == "{" and (entry := _literal(f"[{cell}]")) and isinstance(entry[0], dict):
        return entry
    # Sets and tuples too, in the order in which they are written.
    if (listed := _literal(f"[{inside}]")) is not None:
        return listed
    return next(csv.reader([inside], skipinitialspace=True), [])


def _literal(text: str) -> list[object] | None:
    """A list in JSON or in Python; None where it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return list(read(text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return None


def _without_point_zero(cells: list[list[str]]) -> list[list[str]]:
    """3.0 as 3, where no number among the values has a fraction."""
    numbers = {one for cell in cells for one in cell if NUMBER.fullmatch(one)}
    if not all(re.fullmatch(WHOLE, number) for number in numbers):
        return cells
    short = {number: number.partition(".")[0] for number in numbers}
    return [list(dict.fromkeys(short.get(one, one) for one in cell)) for cell in cells]
