"""Recognize times that are not epoch seconds, and advise how to convert them.

The advice has a pandas expression for `column`, the column as text. Its result is whole seconds
UTC, and empty cells stay empty. Reads and writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
DAY = r"(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*"

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
        rf"|(?i:(?:{DAY},?\s+)?(?:{MONTH}\s+[0-9].*|[0-9]{{1,2}}[-/.\s]+{MONTH}.*[0-9].*))",
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
REST = (
    r"(?:(?P<gap>T|,?\s+|:)(?P<clock>[0-9]{1,2}(?P<minute>:[0-9]{2})(?P<second>:[0-9]{2})?"
    r"(?P<fraction>\.[0-9]+)?)(?P<half>\s*[AP]M)?)?(?P<zone>\s*(?:Z|UTC|GMT|[+-][0-9]{2}(?::?[0-9]{2})?))?"
)
READ = (
    r"(?P<a>[0-9]{1,4})(?P<s>[-/.])(?P<b>[0-9]{1,2})(?P=s)(?P<c>[0-9]{1,4})",
    rf"(?P<weekday>{DAY})?(?P<w>,?\s+)?(?P<d>[0-9]{{1,2}})(?P<s>[-/.\s]+)(?P<month>{MONTH})"
    r"(?P<t>[-/.,\s]+)(?P<y>[0-9]{4}|[0-9]{2})",
    rf"(?P<weekday>{DAY})?(?P<w>,?\s+)?(?P<month>{MONTH})(?P<s>\s+)(?P<d>[0-9]{{1,2}})"
    r"(?P<t>,?\s+)(?P<y>[0-9]{4})",
)
READ_DATE = tuple(re.compile(part + REST, re.IGNORECASE) for part in READ)
# As C's ctime and Twitter write it: Sun Sep 13 12:26:40 +0000 2020.
YEAR_AT_THE_END = re.compile(
    r"[a-z]{3} [a-z]{3} [0-9]{1,2} [0-9]{2}:[0-9]{2}:[0-9]{2}( [+-][0-9]{4}| UTC| GMT)? [0-9]{4}",
    re.IGNORECASE,
)


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
    choices = ["format='ISO8601'"] if order == "ymd" else []
    for wanted in (order, "ydm"):
        formats = {found.formats.get(wanted, found.formats.get("text")) for found in read.values()}
        if len(formats) == 1 and None not in formats:
            choices.append(f"format={formats.pop()!r}")
    choices.append("format='mixed'" + (", dayfirst=True" if order == "dmy" else ""))
    for choice in choices:
        if _reads(list(read), choice):
            short = any("%y" in found.formats.get(order, "") for found in read.values())
            years = " (the last two digits are taken for the year)" if short else ""
            return f"convert it{years}: {SECONDS.format(choice)}"
    return f"write dates such as {next(iter(read))!r} as whole epoch seconds"


def _reads(dates: Sequence[str], choice: str) -> bool:
    """Return True if pandas reads all `dates` with this choice."""
    name = choice.removeprefix("format='").removesuffix(", dayfirst=True").removesuffix("'")
    try:
        pd.to_datetime(
            pd.Series(list(dates)), utc=True, format=name, dayfirst=choice.endswith("dayfirst=True")
        )
    except (ValueError, OverflowError):
        return False
    return True


def _read(date: str) -> _Date | None:
    if re.fullmatch(r"[0-9]{8}T[0-9]{4}.*", date):
        return _Date({"ymd": ""})
    if found := YEAR_AT_THE_END.fullmatch(date):
        zone = {"": "", "+": " %z", "-": " %z"}.get((found[1] or "").strip()[:1], found[1])
        return _Date({"text": f"%a %b %d %H:%M:%S{zone} %Y"})
    for number, pattern in enumerate(READ_DATE):
        if found := pattern.fullmatch(date):
            part = found.groupdict()
            if number:
                return _Date({"text": _named(part, month_first=number == 2) + _rest(part)})
            return _numeric(part)
    return None


def _numeric(part: dict[str, str]) -> _Date:
    s, first, second, third = part["s"], part["a"], part["b"], part["c"]
    if len(first) == 4:
        formats = {"ymd": f"%Y{s}%m{s}%d", "ydm": f"%Y{s}%d{s}%m"}
    else:
        year = "%Y" if len(third) == 4 else "%y"
        formats = {"dmy": f"%d{s}%m{s}{year}", "mdy": f"%m{s}%d{s}{year}"}
    rest = _rest(part)
    return _Date({order: f + rest for order, f in formats.items()}, int(first), int(second))


def _named(part: dict[str, str], *, month_first: bool) -> str:
    weekday, month = part["weekday"] or "", part["month"]
    month = "%b" if len(month) == 3 else "%B"
    day = f"{'%a' if len(weekday) == 3 else '%A'}{part['w'] or ''}" if weekday else ""
    date = (month, "%d") if month_first else ("%d", month)
    year = "%Y" if len(part["y"]) == 4 else "%y"
    return f"{day}{date[0]}{part['s']}{date[1]}{part['t']}{year}"


def _rest(part: dict[str, str]) -> str:
    if not part["clock"]:
        return part["zone"] or ""
    clock = ("%I" if part["half"] else "%H") + ":%M"
    clock += ":%S" * bool(part["second"]) + ".%f" * bool(part["fraction"])
    if half := part["half"]:
        clock += half[:-2] + "%p"
    if zone := part["zone"]:
        named = zone.strip().upper() in ("UTC", "GMT")
        clock += zone if named else zone[: len(zone) - len(zone.lstrip())] + "%z"
    return part["gap"] + clock
