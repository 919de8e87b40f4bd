"""MLflow's store of the project: whole or not there, whoever makes it and however that ends."""

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from hpgr.registry.tracking import connect, database

ROOT = Path(__file__).parents[1]
ASK = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import mlflow.store.db.utils as db
from hpgr.registry.tracking import connect
"""
TOGETHER = f"""{ASK}
print("ready", flush=True)
sys.stdin.readline()
connect().search_experiments()
"""
KILLED = f"""{ASK}
import os, signal
db._upgrade_db = lambda engine: os.kill(os.getpid(), signal.SIGKILL)
connect().search_experiments()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def python(code):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_that_want_the_store_at_once_both_find_it_whole():
    both = [python(TOGETHER) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ended


def test_one_that_is_killed_while_it_makes_the_store_leaves_none():
    killed = python(KILLED)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not database().exists()
    assert list(database().parent.glob(".mlflow.db.*.*"))  # half of one
    assert [e.name for e in connect().search_experiments()] == ["Default"]
    assert {path.name for path in database().parent.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}


def test_a_store_that_is_there_is_left_as_it_is():
    connect().create_experiment("mine")
    before = database().stat()
    assert {e.name for e in connect().search_experiments()} == {"Default", "mine"}
    assert database().stat().st_ino == before.st_ino


def test_the_default_experiment_keeps_its_artifacts_beside_the_store(tmp_path):
    connect()
    with closing(sqlite3.connect(database())) as store:
        locations = [row[0] for row in store.execute("select artifact_location from experiments")]
    assert locations == [f"{(tmp_path / 'mlflow/store/artifacts').as_uri()}/0"]
