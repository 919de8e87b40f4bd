"""Drill: a flow that was started as a command, without a server, is killed with its process."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from servers import until

from flows.server import AUTOMATION, TEMPORARY
from hpgr.runtime import TELEMETRY_OFF

ROOT = Path(__file__).parents[2]
FLOW = """
import pathlib, time
from prefect import flow
from flows.launch import launch

@flow(persist_result=False)
def forever():
    pathlib.Path("works").touch()
    time.sleep(600)

launch(forever)
"""
CLEAN_UP = "from flows.server import end_orphans; end_orphans()"


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


def python(folder, code):
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "HPGR"))}
    places = {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(folder / ".prefect")}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=ours | TELEMETRY_OFF | places
    )


@pytest.fixture
def killed(tmp_path):
    """The folder of a launch that was killed while its flow worked."""
    launched = python(tmp_path, FLOW)
    try:
        until((tmp_path / "works").exists, "the flow works", 120)
        assert python(tmp_path, CLEAN_UP).wait() == 0
        assert len(servers(tmp_path)) == 1  # that of a living flow stays
    finally:
        launched.kill()
        launched.wait()
    yield tmp_path
    for server in servers(tmp_path):
        server.kill()


def test_the_next_start_ends_the_server_it_leaves_and_a_server_will_mark_its_run(killed):
    (server,) = servers(killed)
    assert python(killed, CLEAN_UP).wait() == 0
    assert not server.is_running()
    database = sqlite3.connect(killed / ".prefect/prefect.db")
    assert database.execute("select state_name from flow_run").fetchall() == [("Running",)]
    automations = database.execute("select name, enabled from automation").fetchall()
    database.close()
    assert automations == [(AUTOMATION, 1)]
