"""Parquet files written table by table, the next table made while one is written."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_parquet(
    tables: Iterable[pa.Table], target: Path, schema: pa.Schema, **options: Any
) -> None:
    """Write tables of one schema to `target`; `options` are those of `pq.ParquetWriter`."""
    with ThreadPoolExecutor(1) as pool, pq.ParquetWriter(target, schema, **options) as writer:
        written: Future[None] | None = None
        for table in tables:
            if written is not None:
                written.result()
            written = pool.submit(writer.write_table, table)
        if written is not None:
            written.result()
