"""Both engines give the same rows, and an engine that is absent says what it needs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sample_log import config, contents, table_of_events, write_validated
from test_vocabulary import grow

from hpgr.data import sessionize
from hpgr.runtime import UserError
from hpgr.workspace import HERE

OUT = Path("artifacts/sessions")


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """An empty project folder with the generated log validated."""
    monkeypatch.chdir(tmp_path)
    write_validated(table_of_events())
    return tmp_path


def test_spark_without_pyspark_names_the_extra(workspace, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    monkeypatch.setitem(sys.modules, "pyspark.errors", None)
    with pytest.raises(UserError, match=r"hpgr\[spark\]"):
        sessionize.sessionize(config(engine="spark"))


def test_spark_without_java_says_what_it_needs(workspace, monkeypatch, jvm):
    pyspark = pytest.importorskip("pyspark", reason="pyspark is not installed (the spark extra)")
    monkeypatch.setattr(pyspark.SparkContext, "_gateway", None)  # a JVM that another test started
    monkeypatch.setenv("JAVA_HOME", str(workspace / "absent"))
    with pytest.raises(UserError, match="needs Java 17"):
        sessionize.sessionize(config(engine="spark"))


def without_spark() -> str | None:
    """The reason why Spark cannot run here, or None."""
    if importlib.util.find_spec("pyspark") is None:
        return "pyspark is not installed (the spark extra)"
    java = Path(os.environ["JAVA_HOME"], "bin/java") if "JAVA_HOME" in os.environ else "java"
    return None if shutil.which(java) else "Java is not installed (Spark needs 17)"


needs_spark = pytest.mark.skipif(without_spark() is not None, reason=str(without_spark()))


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    """Spark's settings for small logs; the JVM that the first test starts serves the others."""
    conf = tmp_path_factory.mktemp("spark-conf")
    (conf / "spark-defaults.conf").write_text(
        "spark.master local[2]\nspark.sql.shuffle.partitions 2\nspark.log.level ERROR\n"
        "spark.ui.enabled false\nspark.ui.showConsoleProgress false\n"
        # On six hundred rows most of the time is compilation: do less of it.
        "spark.driver.extraJavaOptions -XX:TieredStopAtLevel=1 -XX:+UseSerialGC\n"
        "spark.sql.codegen.wholeStage false\nspark.sql.codegen.factoryMode NO_CODEGEN\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_CONF_DIR", str(conf))
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        yield


@pytest.mark.spark
@needs_spark
def test_spark_gives_the_same_rows_as_duckdb(workspace, spark, jvm):
    tables, rest = [], []
    for name in ("duckdb", "spark"):
        sessionize.sessionize(config(engine=name, split="global-time", min_item_events=1))
        tables.append({path.name: pq.read_table(path) for path in OUT.glob("*.parquet")})
        files = contents(OUT)
        rest.append({file: files[file] for file in files if not file.endswith(".parquet")})
    assert rest[0] == rest[1]
    for name, table in tables[0].items():
        assert tables[1][name].to_pylist() == table.to_pylist(), name
        assert tables[1][name].schema.types == table.schema.types, name


@pytest.mark.spark
@needs_spark
def test_spark_grows_the_same_vocabulary(workspace, spark, jvm):
    expected = grow(workspace), contents(OUT / "arrays")
    shutil.rmtree(HERE.base)
    assert (grow(workspace, "spark"), contents(OUT / "arrays")) == expected
