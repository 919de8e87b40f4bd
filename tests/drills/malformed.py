"""Malformed logs, one function a case, and what the project must make of each.

A case writes into an empty raw folder and returns the changes of the data section. It ends in one
of three ways: every row is accepted, rows go to quarantine for the reasons named, or the log is
refused with a message that holds the words named. The oracle is the contract as
docs/your-own-data.md tells it, spelled out here by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from own_log import good_rows

HEADER = "user_id,item_id,timestamp"
GOOD = [",".join(map(str, row)) for row in good_rows(60)]
PARQUET = {"interactions": "log.parquet"}
NOT_WHOLE = "timestamp is not a whole number"
TOO_FINE = "timestamp is in milliseconds or finer"
TOO_EARLY = "timestamp is too early"
FUTURE = "timestamp is in the future"
FIELDS = "wrong number of fields"


@dataclass(frozen=True)
class Case:
    """One malformed log.

    `refused` are words of the refusal, `doctor` words that one line of the doctor's must hold
    (those of the refusal by default); `reasons` the quarantined rows by reason; `accepted` the
    rows that go on, `events` what the first of them must be.
    """

    write: Callable[[Path], dict[str, Any] | None]
    refused: tuple[str, ...] = ()
    reasons: dict[str, int] | None = None
    accepted: int | None = None
    events: tuple[tuple[Any, ...], ...] = ()
    doctor: tuple[str, ...] = ()


CASES: dict[str, Case] = {}


def case(**verdict: Any) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    """Enter the decorated function under its name."""

    def enter(write: Callable[[Path], Any]) -> Callable[[Path], Any]:
        CASES[write.__name__] = Case(write, **verdict)
        return write

    return enter


def text(folder: Path, *lines: str, name: str = "log.csv") -> None:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")


def log(folder: Path, *lines: str) -> None:
    """The good rows, then `lines`."""
    text(folder, HEADER, *GOOD, *lines)


def parquet(folder: Path, **columns: Any) -> dict[str, Any]:
    """Sixty good rows with some columns replaced."""
    user, item, stamp = (pa.array(column) for column in zip(*good_rows(60), strict=True))
    table = {"user_id": user, "item_id": item, "timestamp": stamp, **columns}
    pq.write_table(pa.table(table), folder / "log.parquet")
    return PARQUET
