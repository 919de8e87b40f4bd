"""Rows that may break a rule of `contract.py`, found by one scan of the staged rows.

Great Expectations judges rows in pandas, which takes seconds a million. In a sound log all rows but
a few surely break no rule: the scan finds the others, and these, with a sample of the sure ones,
are judged. Reads the staged rows (`staging.py`). Writes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from hpgr.intake.contract import ITEM, MILLISECONDS_FROM, RAGGED, ROW, TIMESTAMP, USER
from hpgr.intake.staging import open_duckdb

if TYPE_CHECKING:
    from hpgr.config import Validate

SAMPLE = 1000  # sure rows that are judged as well


def suspects(
    staged: Path, limits: Validate, *, now: int, known: pd.Index | None, also: str = "true"
) -> np.ndarray:
    """Sorted numbers of the rows that may break a rule for a row by itself, int64.

    Args:
        staged: the rows.
        limits: those of the rules.
        now: seconds since 1970.
        known: ids of the items table; None where there is none.
        also: in SQL, a condition on the other columns of a row that is sure.
    """
    latest = min(now + limits.max_timestamp_ahead_s, MILLISECONDS_FROM - 1)
    # A number that is written back as it was read is a plain whole number.
    number = f"try_cast({TIMESTAMP} AS BIGINT)"
    sure = (
        f"{RAGGED} IS NULL AND {USER} NOTNULL AND {ITEM} NOTNULL AND "
        f"{number}::VARCHAR = {TIMESTAMP} AND {number} BETWEEN ? AND ? AND ({also})"
    )
    with open_duckdb(staged.parent) as connection:
        if known is not None:
            connection.register("known", pd.DataFrame({ITEM: known.to_series(index=None)}))
            sure += f" AND {ITEM} IN (SELECT {ITEM} FROM known)"
        found = connection.execute(
            f"SELECT {ROW} FROM read_parquet(?) WHERE NOT coalesce({sure}, false) ORDER BY 1",
            [str(staged), limits.min_timestamp, latest],
        ).fetchnumpy()
    return np.asarray(found[ROW], dtype=np.int64)


def with_sample(suspect: np.ndarray, rows: int) -> np.ndarray:
    """The suspects among `rows` rows and the first SAMPLE of the others, sorted, int64."""
    first = np.arange(min(rows, len(suspect) + SAMPLE))
    return np.union1d(suspect, np.setdiff1d(first, suspect)[:SAMPLE])
