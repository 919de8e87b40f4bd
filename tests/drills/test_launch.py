"""Drill: a flow that was started as a command, without a server, is stopped, or killed."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest
from waiting import until

from host.own_server import TEMPORARY
from host.prefect_server import AUTOMATION
from hpgr.runtime import TELEMETRY_OFF

ROOT = Path(__file__).parents[2]
FLOW = """
import pathlib, threading, time
from prefect import flow
from flows.launch import launch
from host.cancellation import recallable

@flow(persist_result=False)
def forever():
    with recallable():
        # On its own server there is nothing to watch.
        assert not [t for t in threading.enumerate() if "watch" in t.name]
        pathlib.Path("works").touch()
        for _ in range(6000):  # a signal that comes just before a sleep is seen after it
            time.sleep(0.1)

launch(forever)
"""
CLEAN_UP = "from host.own_server import end_orphans; end_orphans()"


def servers(folder):
    """Temporary servers that live and were started in this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder and TEMPORARY in process.environ():
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def python(folder, code, **options):
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "HPGR"))}
    places = {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(folder / ".prefect")}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=ours | TELEMETRY_OFF | places, **options
    )


def runs(folder):
    """Names of the states of all runs."""
    with closing(sqlite3.connect(folder / ".prefect/prefect.db")) as database:
        return [name for (name,) in database.execute("select state_name from flow_run")]


@pytest.fixture
def launched(tmp_path, prefect_database):
    """A launch in `tmp_path` whose flow works, in a group of its own as in a terminal."""
    shutil.copy(ROOT / "prefect.toml", tmp_path)
    (tmp_path / ".prefect").mkdir()
    shutil.copy(prefect_database, tmp_path / ".prefect")
    process = python(
        tmp_path, FLOW, process_group=0, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        until((tmp_path / "works").exists, "the flow works")
        yield process
    finally:
        process.kill()
        process.wait()
        for server in servers(tmp_path):
            server.kill()


def printed(process):
    """Its output, after its end."""
    text, _ = process.communicate(timeout=300)
    assert "Traceback" not in text
    return text


def test_ctrl_c_reaches_the_whole_group_and_the_run_is_marked_before_its_server_goes(
    tmp_path, launched
):
    os.killpg(launched.pid, signal.SIGINT)
    assert "error: stopped by Ctrl-C." in printed(launched)
    assert launched.returncode == 128 + signal.SIGINT
    assert runs(tmp_path) == ["Crashed"]
    assert not servers(tmp_path)


def test_the_temporary_server_answers_its_own_run_alone(tmp_path, launched):
    (server,) = servers(tmp_path)
    words = server.cmdline()
    api = f"http://127.0.0.1:{words[words.index('--port') + 1]}/api"
    for headers in ({}, {"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        reply = httpx.post(f"{api}/flow_runs/filter", json={}, headers=headers, trust_env=False)
        assert reply.status_code in (400, 401, 403)
        assert "access-control-allow-origin" not in reply.headers
    assert runs(tmp_path) == ["Running"]


def test_sigterm_to_the_process_marks_the_run(tmp_path, launched):
    launched.terminate()
    assert "error: stopped by SIGTERM." in printed(launched)
    assert launched.returncode == 128 + signal.SIGTERM
    assert runs(tmp_path) == ["Crashed"]
    assert not servers(tmp_path)


@pytest.fixture
def killed(tmp_path, launched):
    """The folder of a launch that was killed while its flow worked."""
    assert python(tmp_path, CLEAN_UP).wait() == 0
    assert len(servers(tmp_path)) == 1  # that of a living flow stays
    launched.kill()
    launched.wait()
    return tmp_path


def test_the_next_start_ends_the_server_it_leaves_and_a_server_will_mark_its_run(killed):
    (server,) = servers(killed)
    assert python(killed, CLEAN_UP).wait() == 0
    assert not server.is_running()
    assert runs(killed) == ["Running"]
    with closing(sqlite3.connect(killed / ".prefect/prefect.db")) as database:
        automations = database.execute("select name, enabled from automation").fetchall()
    assert automations == [(AUTOMATION, 1)]
