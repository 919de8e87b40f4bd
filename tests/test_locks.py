"""DVC's lock after a kill: what is gone goes, what lives stays, also where numbers are reused."""

import json
import os
import subprocess
import sys

import psutil
import pytest

from flows.locks import drop_stale_locks

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


@pytest.mark.parametrize("text", [None, "", "{"])
def test_no_lock_or_a_damaged_one_is_left_to_dvc(tmp_path, text):
    path = tmp_path / "rwlock"
    if text is not None:
        path.write_text(text)
    assert drop_stale_locks(path) == 0
