"""DVC's lock after a kill: what is gone goes, what lives stays, also where numbers are reused."""

import json
import os
import subprocess
import sys

import psutil
import pytest
from dvc.fs import localfs
from dvc.lock import make_lock
from dvc.rwlock import RWLockFileCorruptedError, RWLockFileFormatError, rwlock

from host.dvc_lock import drop_stale_locks

PATHS = ("artifacts/a", "artifacts/b")


@pytest.fixture
def dvc_like():
    """A living process whose command line looks like a dvc call's."""
    code = "import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, "dvc", "repro", "slow"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert not psutil.pid_exists(process.pid)
    return process.pid


def write(path, pid):
    info = {"pid": pid, "cmd": "/venv/bin/dvc repro slow"}
    path.write_text(json.dumps({"read": {PATHS[0]: [info]}, "write": {PATHS[1]: info}}))


def test_entries_of_a_dead_process_go(tmp_path, gone):
    write(path := tmp_path / "rwlock", gone)
    assert drop_stale_locks(path) == 2
    assert json.loads(path.read_text()) == {"read": {}, "write": {}}


def test_entries_of_a_living_dvc_stay(tmp_path, dvc_like):
    write(path := tmp_path / "rwlock", dvc_like.pid)
    before = path.read_bytes()
    assert drop_stale_locks(path) == 0
    assert path.read_bytes() == before


def test_entries_whose_number_another_process_has_now_go(tmp_path):
    write(path := tmp_path / "rwlock", os.getpid())
    assert drop_stale_locks(path) == 2


def test_no_lock_stays_none(tmp_path):
    assert drop_stale_locks(tmp_path / "rwlock") == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", '{"read": {"a"', "[]", '{"write": {"a": {"pid": "x"}}}'])
def test_a_damaged_lock_no_longer_stops_dvc(tmp_path, text):
    path = tmp_path / "rwlock"
    path.write_text(text)
    with pytest.raises((RWLockFileCorruptedError, RWLockFileFormatError)):
        take(tmp_path)
    assert drop_stale_locks(path) == 0
    take(tmp_path)


def test_nothing_is_dropped_while_dvc_writes_the_lock(tmp_path, gone, monkeypatch):
    monkeypatch.setattr("dvc.lock.DEFAULT_TIMEOUT", 0.06)
    write(path := tmp_path / "rwlock", gone)
    before = path.read_bytes()
    with make_lock(str(tmp_path / "rwlock.lock")):
        assert drop_stale_locks(path) == 0
    assert path.read_bytes() == before
    assert drop_stale_locks(path) == 2


def take(folder):
    """Steps of a DVC command before and after its work."""
    with rwlock(str(folder), localfs, "dvc repro slow", ["a"], ["b"], False):
        pass
