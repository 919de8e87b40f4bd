"""Recognize times that are not epoch seconds, and advise how to convert them.

The advice has a pandas expression for `column`, the column as text. Its result is whole seconds
UTC, and empty cells stay empty. Reads and writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
DAY = r"(?:mon|tue|wed|thu|fri|sat|sun)"

# The first shape that fits names the value.
SHAPES = (
    ("epoch seconds", r"-?[0-9]{1,11}(?:\.0*)?"),
    ("epoch milliseconds or finer", r"-?[0-9]{12,}(?:\.[0-9]*)?"),
    ("the day number of a spreadsheet", r"[2-6][0-9]{4}\.[0-9]+"),
    ("epoch seconds with a fraction", r"-?[0-9]+\.[0-9]+"),
    ("scientific notation", r"-?[0-9]+(?:[.,][0-9]+)?[eE]\+?[0-9]+"),
    (
        "a date",
        r"[0-9]{1,4}[-/.][0-9]{1,2}[-/.][0-9]{1,4}.*|[0-9]{8}T[0-9]{4}.*"
        rf"|(?i:(?:{DAY}[a-z]*,?\s+)?"
        rf"(?:{MONTH}[a-z]*\s+[0-9].*|[0-9]{{1,2}}[-/.\s]+{MONTH}[a-z]*.*[0-9].*))",
    ),
)
NUMBER = "pandas.to_numeric(column)"
FIXES = {
    "epoch milliseconds or finer": "divide and cut the fraction off, for milliseconds: "
    f"numpy.floor({NUMBER} / 1000).astype('Int64')",
    "the day number of a spreadsheet": "convert it, where it counts days since 1899-12-30 UTC: "
    f"(({NUMBER} - 25569) * 86400).round().astype('Int64')",
    "epoch seconds with a fraction": f"cut the fraction off: numpy.floor({NUMBER}).astype('Int64')",
    "scientific notation": "a spreadsheet lost digits: export the column as a number again",
}
SECONDS = (
    "((pandas.to_datetime(column, utc=True, {}) - pandas.Timestamp('1970-01-01', tz='UTC'))"
    " // pandas.Timedelta('1s')).astype('Int64')"
)
# What a date is written with, and strptime's code for it, in the order of replacement.
CODES = tuple(
    (re.compile(pattern, re.IGNORECASE), code)
    for pattern, code in (
        (r"(?<![-/.0-9])[0-9]{1,2}:[0-9]{2}(?![0-9])", "%H:%M"),
        (r"(?<=%M):[0-9]{2}(?![0-9])", ":%S"),
        (r"(?<=%[SM])\.[0-9]+", ".%f"),
        (r"(?<=%[SMf])(\s*)[AP]M(?![a-y])", r"\1%p"),
        (r"(?<=%[SMfp])(\s*)(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)(?![\w:])", r"\1%z"),
        (rf"^{DAY}(?![a-z])", "%a"),
        (rf"^{DAY}[a-z]+", "%A"),
        (rf"\b{MONTH}(?![a-z])", "%b"),
        (rf"\b{MONTH}[a-z]+", "%B"),
        (r"(?<![0-9])[0-9]{4}(?![0-9])", "%Y"),
    )
)
SHORT_NUMBER = re.compile(r"(?<![0-9])[0-9]{1,2}(?![0-9])")
LEGIBLE = re.compile(r"(?:%[a-z]|[-/.,:#T\s]|Z|UTC|GMT)+", re.IGNORECASE)


@dataclass(frozen=True)
class _Date:
    """A date as written: `formats` by order of its parts, and the numbers that show the order."""

    formats: dict[str, str]  # by order: "ymd", "ydm", "dmy", "mdy", or "text" with a named month
    first: int = 0
    second: int = 0

    @property
    def family(self) -> str:
        """Dates of one family can be converted together."""
        return "numbers" if "dmy" in self.formats else "words" if "text" in self.formats else "year"


def shapes(values: pd.Series) -> pd.Series:
    """The shape of each value, by SHAPES; missing values are left out."""
    present = values.dropna()
    found = pd.Series("no number", index=present.index, dtype=object)
    for name, pattern in reversed(SHAPES):
        found[present.str.fullmatch(pattern)] = name
    return found


def kinds_of_dates(values: pd.Series) -> list[str]:
    """One of `values` for each way of writing a date and each order of its parts among them."""
    numbers = values.str.extract(r"^([0-9]{1,4})\D([0-9]{1,2})\D([0-9]{1,4})").astype("float64")
    kinds = (numbers > 12).assign(written=values.str.replace(r"[0-9]", "9", regex=True))
    return values[~kinds.duplicated()].tolist()


def advice(dates: Sequence[str]) -> str:
    """Advice for converting a column to epoch seconds; `dates` has one of each kind in it."""
    read = {date: found for date in dates if (found := _read(date)) is not None}
    if strange := [date for date in dates if date not in read]:
        return f"write {strange[0]!r} as 2020-12-31T23:59:59Z or as whole epoch seconds"
    families = {found.family: date for date, found in read.items()}
    if len(families) > 1:
        shown = " and ".join(map(repr, sorted(families.values())))
        return f"dates are written in several ways, {shown}: separate those and convert each alone"
    if "numbers" not in families:
        return _convert(read, "ymd")
    day_first = [date for date, found in read.items() if found.first > 12]
    month_first = [date for date, found in read.items() if found.second > 12]
    if day_first and month_first:
        return (
            f"some put the day first ({day_first[0]!r}), some the month ({month_first[0]!r}): "
            "convert each alone, where they come from: in 03/04/2020 the two cannot be told apart"
        )
    if not day_first and not month_first:
        return (
            f"day and month cannot be told apart, as in {dates[0]!r}: ask where the log comes "
            f"from. If the day is first, {_convert(read, 'dmy')}. If the month is first, "
            f"{_convert(read, 'mdy')}"
        )
    return _convert(read, "dmy" if day_first else "mdy")


def _convert(read: Mapping[str, _Date], order: str) -> str:
    """The expression for all dates; `order` is that of day, month and year if no year leads."""
    choices: list[dict[str, Any]] = [{"format": "ISO8601"}] if order == "ymd" else []
    for wanted in (order, "ydm"):
        formats = {found.formats.get(wanted, found.formats.get("text")) for found in read.values()}
        if len(formats) == 1 and None not in formats:
            choices.append({"format": formats.pop()})
    choices.append({"format": "mixed"} | ({"dayfirst": True} if order == "dmy" else {}))
    for choice in choices:
        try:
            pd.to_datetime(pd.Series(list(read)), utc=True, **choice)
        except (ValueError, OverflowError):
            continue
        short = any("%y" in found.formats.get(order, "") for found in read.values())
        years = " (the last two digits are taken for the year)" if short else ""
        arguments = ", ".join(f"{name}={value!r}" for name, value in choice.items())
        return f"convert it{years}: {SECONDS.format(arguments)}"
    return f"write dates such as {next(iter(read))!r} as whole epoch seconds"


def _read(date: str) -> _Date | None:
    if re.fullmatch(r"[0-9]{8}T[0-9]{4}.*", date):
        return _Date({"ymd": ""})
    found = date
    for pattern, code in CODES:
        found = pattern.sub(code, found, count=1)
    if "%p" in found:
        found = found.replace("%H", "%I")
    numbers = [int(number) for number in SHORT_NUMBER.findall(found)]
    found = SHORT_NUMBER.sub("#", found)
    if "%b" in found or "%B" in found:
        orders = {"text": "dy"}
    elif found.startswith("%Y"):
        orders = {"ymd": "md", "ydm": "dm"}
    else:
        orders = {"dmy": "dmy", "mdy": "mdy"}
    if not LEGIBLE.fullmatch(found) or len(numbers) + ("%Y" in found) != 3 - ("text" in orders):
        return None
    formats = {}
    for order, codes in orders.items():
        formats[order] = found
        for code in codes:
            formats[order] = formats[order].replace("#", f"%{code}", 1)
    return _Date(formats, *numbers[:2])
