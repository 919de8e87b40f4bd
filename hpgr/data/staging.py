"""Raw rows set aside as Parquet, so that questions about the whole log need no memory for it.

Writes and reads the paths it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from hpgr.data.contract import ACTION, EVENT_COLUMNS, ITEM, RAGGED, ROW, TIMESTAMP, USER
from hpgr.data.tables import LINE

STAGED_SCHEMA = pa.schema(
    [(name, pa.string()) for name in EVENT_COLUMNS]
    + [(ROW, pa.int64()), (LINE, pa.int64()), (RAGGED, pa.string())]
)


def stage(chunks: Iterator[pd.DataFrame], target: Path) -> None:
    """Write the raw rows as they are, so that they can be walked again."""
    with pq.ParquetWriter(target, STAGED_SCHEMA) as writer:
        for chunk in tqdm(chunks, desc="read", unit="chunk", disable=None):
            frame = chunk[STAGED_SCHEMA.names]
            writer.write_table(pa.Table.from_pandas(frame, STAGED_SCHEMA, preserve_index=False))


def copies(staged: Path) -> np.ndarray:
    """Sorted numbers of the rows that repeat an earlier one in user, item, time and action."""
    with open_duckdb(staged.parent) as connection:
        keys = ", ".join([USER, ITEM, TIMESTAMP, ACTION])
        found = connection.execute(
            f"""
            WITH twice AS (
                SELECT {keys}, min({ROW}) AS first
                FROM read_parquet(?) GROUP BY ALL HAVING count(*) > 1
            )
            SELECT log.{ROW} FROM read_parquet(?) AS log JOIN twice ON log.{ROW} > twice.first
            """
            + "".join(
                f" AND log.{key} IS NOT DISTINCT FROM twice.{key}"
                for key in (USER, ITEM, TIMESTAMP, ACTION)
            )
            + f" ORDER BY log.{ROW}",
            [str(staged), str(staged)],
        ).fetchnumpy()[ROW]
    return np.asarray(found, dtype=np.int64)


def open_duckdb(scratch: Path | str) -> duckdb.DuckDBPyConnection:
    """A database in memory that spills to `scratch` rather than grow with the log."""
    connection = duckdb.connect()
    connection.execute("SET memory_limit = '512MB'")
    connection.execute("SET temp_directory = ?", [str(Path(scratch) / "spill")])
    return connection
