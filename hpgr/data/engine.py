"""The engine that runs an Ibis expression: DuckDB in this process, or Spark.

Reads and writes Parquet at the paths it is given. Spark runs on the cluster that its own
configuration names (SPARK_CONF_DIR, SPARK_REMOTE), else in local mode; on a cluster the working
folder has to lie on storage that every executor sees.
"""

from __future__ import annotations

import glob
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.dataset as ds

from hpgr.runtime import UserError, scratch_prefix

if TYPE_CHECKING:
    from ibis.expr.types import Table

DUCKDB_MEMORY = "1GB"  # by default it takes four fifths of the machine's before it spills


@dataclass(frozen=True)
class Engine:
    """An Ibis backend and a scratch folder for its tables."""

    backend: Any
    scratch: Path
    remote: bool = False  # its executors do not know this process's folder

    def read(self, path: Path) -> Table:
        """Lazy table over a Parquet file, or over the folder of parts that Spark writes."""
        return self.backend.read_parquet(self._pattern(path))

    def store(self, table: Table, name: str) -> Path:
        """Run `table`, write it below the scratch folder and return its path."""
        path = self.scratch / f"{name}.parquet"
        self.backend.to_parquet(table, path.absolute() if self.remote else path)
        return path

    def _pattern(self, path: Path) -> str:
        """A pattern that matches `path` alone: folders may have `*` or `[` in their names."""
        if not self.remote:
            return glob.escape(str(path))
        return re.sub(r"[\[\]{}*?\\]", r"\\\g<0>", str(path.absolute()))


@contextmanager
def open_engine(name: Literal["duckdb", "spark"], parent: Path) -> Iterator[Engine]:
    """Open an engine with a scratch folder below `parent`; the block's end closes and removes both.

    Raises:
        UserError: Spark is asked for, and pyspark or Java is absent.
    """
    import ibis

    prefix = scratch_prefix(parent / "sessionize")
    with tempfile.TemporaryDirectory(
        prefix=prefix, dir=parent, ignore_cleanup_errors=True
    ) as folder:
        scratch = Path(folder)
        if name == "duckdb":
            # Beyond the limit it spills; without a folder, into the working directory.
            backend = ibis.duckdb.connect(
                temp_directory=str(scratch / "spill"), memory_limit=DUCKDB_MEMORY
            )
            try:
                yield Engine(backend, scratch)
            finally:
                backend.disconnect()
        else:
            with _spark() as session:
                yield Engine(ibis.pyspark.connect(session), scratch, remote=True)


@contextmanager
def _spark() -> Iterator[Any]:
    """A Spark session: the cluster that Spark's own configuration names, else local mode."""
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise UserError(
            "sessionize.engine is spark, but pyspark is not installed: "
            "install the extra (pip install 'hpgr[spark]') or set engine: duckdb"
        ) from None
    active = SparkSession.getActiveSession()
    try:
        session = active or SparkSession.builder.appName("hpgr sessionize").getOrCreate()
    except PySparkException as error:
        raise UserError(
            f"sessionize.engine is spark, but Spark does not start ({error}): "
            "it needs Java 17 (JAVA_HOME), or set engine: duckdb"
        ) from error
    try:
        yield session
    finally:
        if active is None:
            session.stop()


def stored(path: Path) -> ds.Dataset:
    """The table that an engine stored, one file or a folder of parts, in the order written."""
    return ds.dataset(sorted(path.glob("part-*.parquet")) if path.is_dir() else path)
