"""Raw rows staged as Parquet: DuckDB answers questions about the whole log out of core.

Reads and writes the paths it is given.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from hpgr.data.parquet import write_parquet
from hpgr.intake.contract import (
    ACTION,
    EVENT_COLUMNS,
    ITEM,
    LINE,
    PART,
    RAGGED,
    ROW,
    SESSION,
    SOURCE,
    TIMESTAMP,
    USER,
)
from hpgr.intake.spelling import (
    DIGITS_LOST,
    EXACT_BITS,
    FROM_A_FLOAT,
    SCIENTIFIC,
    SHORTENED_FROM,
    WHOLE,
)
from hpgr.runtime import UserError

KEYS = (USER, ITEM, TIMESTAMP, ACTION)  # what makes two events the same
# 978300760 and 978300760.0 (pandas' spelling in a column with gaps) are one time.
READ = (
    f"SELECT * REPLACE (if(contains({TIMESTAMP}, '.'), regexp_replace({TIMESTAMP}, '\\.0*$', ''), "
    f"{TIMESTAMP}) AS {TIMESTAMP}) FROM read_parquet($1)"
)


def staged_schema(columns: Sequence[str]) -> pa.Schema:
    """Columns of the staged rows: their own as text, and where each row comes from."""
    return pa.schema(
        [(name, pa.string()) for name in columns]
        + [(name, pa.int64()) for name in (ROW, PART, SOURCE, LINE)]
        + [(RAGGED, pa.string())]
    )


def stage(
    chunks: Iterator[pd.DataFrame], target: Path, columns: Sequence[str] = EVENT_COLUMNS
) -> None:
    """Write the raw rows unchanged, so that they can be read repeatedly.

    `columns` are their own; one that the chunks lack is empty.
    """
    schema = staged_schema(columns)
    tables = (
        pa.Table.from_pandas(
            chunk.reindex(columns=schema.names, fill_value=None), schema, preserve_index=False
        )
        for chunk in tqdm(chunks, desc="read", unit="chunk", disable=None)
    )
    write_parquet(tables, target, schema, compression="lz4", use_dictionary=list(columns))


def staged_rows(staged: Path, rows: np.ndarray, most: int) -> Iterator[pd.DataFrame]:
    """The staged rows of these sorted numbers, in pieces of about `most`."""
    waiting: list[pa.Table] = []
    start = 0
    with pq.ParquetFile(staged) as file:
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            low, high = np.searchsorted(rows, (start, stop))
            if low < high:
                waiting.append(file.read_row_group(group).take(rows[low:high] - start))
            start = stop
            if sum(map(len, waiting)) >= most:
                yield pa.concat_tables(waiting).to_pandas()
                waiting = []
    if waiting:
        yield pa.concat_tables(waiting).to_pandas()


def mend_ids(
    staged: Path, files: Sequence[Path], columns: Sequence[str] = (USER, ITEM, SESSION)
) -> list[tuple[int, str]]:
    """Remove ".0" from staged ids, in each part and column that has whole numbers only.

    Programs export whole numbers that way if a column has gaps. `files` are the parts' files,
    `columns` those of the ids. Returns part and column of what was changed.

    Raises:
        UserError: such a number has more digits than a float holds.
    """
    mended = []
    with open_duckdb(staged.parent) as connection:
        for column in columns:
            spoiled = f"regexp_matches({column}, '{FROM_A_FLOAT}')"
            limit = f"if(contains(lower({column}), 'e'), {SHORTENED_FROM}, {2 ** EXACT_BITS[64]})"
            # What FROM_A_FLOAT matches holds one of these, and few ids do: cheaper to look for.
            hint = " OR ".join(f"contains({column}, '{mark}')" for mark in (".0", "e", "E"))
            found = connection.execute(
                f"SELECT {PART}, bool_and(regexp_full_match({column}, '{WHOLE}')), "
                f"any_value({column}) FILTER ({spoiled} AND "
                f"abs(try_cast({column} AS DOUBLE)) >= {limit}) "
                f"FROM read_parquet($1) WHERE {PART} IN "
                f"(SELECT DISTINCT {PART} FROM read_parquet($1) WHERE ({hint}) AND {spoiled}) "
                f"GROUP BY 1 HAVING bool_and(regexp_full_match({column}, '{WHOLE}|{SCIENTIFIC}')) "
                "ORDER BY 1",
                [glob.escape(str(staged))],
            ).fetchall()
            for part, whole, lost in found:
                if lost:
                    raise UserError(f"{files[part]}: {column} holds {lost}: {DIGITS_LOST}")
                if whole:
                    mended.append((part, column))
    if mended:
        spelled = ", ".join(
            f"CASE WHEN {PART} IN ({', '.join(str(p) for p, c in mended if c == column)}) "
            f"THEN regexp_replace({column}, '\\.0+$', '') ELSE {column} END AS {column}"
            for column in dict.fromkeys(column for _, column in mended)
        )
        whole_log = staged.with_name("mended.parquet")
        with open_duckdb(staged.parent) as connection:
            connection.sql(
                f"SELECT * REPLACE ({spelled}) FROM read_parquet(?)", params=[str(staged)]
            ).write_parquet(str(whole_log))
        whole_log.replace(staged)
    return mended


def copies(staged: Path) -> tuple[np.ndarray, np.ndarray]:
    """Sorted numbers of rows that repeat an earlier one in user, item, time and action.

    Returns those whose first occurrence is in their own part, and those whose first occurrence is
    in an earlier part.
    """
    keys = ", ".join(KEYS)
    with open_duckdb(staged.parent) as connection:
        # Few rows share a hash: only these are compared.
        found = connection.execute(
            f"""
            WITH hashes AS (
                SELECT hash({keys}) AS hashed FROM ({READ}) GROUP BY 1 HAVING count(*) > 1
            ), log AS (
                SELECT * FROM ({READ}) WHERE hash({keys}) IN (SELECT hashed FROM hashes)
            ), twice AS (
                SELECT {keys}, min({ROW}) AS first, min({PART}) AS first_part
                FROM log GROUP BY ALL HAVING count(*) > 1
            )
            SELECT log.{ROW}, log.{PART} > twice.first_part AS repeated
            FROM log JOIN twice ON log.{ROW} > twice.first AND {_same("twice")}
            ORDER BY log.{ROW}
            """,
            [str(staged)],
        ).fetchnumpy()
    rows, repeated = np.asarray(found[ROW], dtype=np.int64), np.asarray(found["repeated"], bool)
    return rows[~repeated], rows[repeated]


def repeated_from(staged: Path, events: Path) -> np.ndarray:
    """Sorted numbers of the staged rows that are already among the accepted `events`."""
    with open_duckdb(staged.parent) as connection:
        found = connection.execute(
            f"""
            SELECT log.{ROW} FROM ({READ}) AS log SEMI JOIN (
                SELECT * REPLACE ({TIMESTAMP}::VARCHAR AS {TIMESTAMP}) FROM read_parquet($2)
            ) AS known ON {_same("known")} ORDER BY log.{ROW}
            """,
            [str(staged), glob.escape(str(events))],  # a folder may have a [ in its name
        ).fetchnumpy()[ROW]
    return np.asarray(found, dtype=np.int64)


def _same(other: str) -> str:
    return " AND ".join(f"log.{key} IS NOT DISTINCT FROM {other}.{key}" for key in KEYS)


def open_duckdb(scratch: Path | str) -> duckdb.DuckDBPyConnection:
    """A database in memory that spills to `scratch` instead of growing with the log."""
    connection = duckdb.connect()
    connection.execute("SET memory_limit = '512MB'")
    connection.execute("SET temp_directory = ?", [str(Path(scratch) / "spill")])
    return connection


def query(scratch: Path, sql: str, *files: Path) -> list[tuple[Any, ...]]:
    """The rows that a statement gives; the Parquet `files` are its parameters."""
    with open_duckdb(scratch) as connection:
        # A folder may have a [ in its name.
        return connection.execute(sql, [glob.escape(str(file)) for file in files]).fetchall()
