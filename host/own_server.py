"""The temporary Prefect server of a flow without one: started, ended, and ended after a kill.

Prefect can start one too, but imports its whole server into the flow's process for that: seconds.
Writes what Prefect's server writes (host/prefect_app.py).
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
from prefect.settings import (
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    get_current_settings,
)

from host.processes import end, processes_with
from hpgr.runtime import UserError

HOST = "127.0.0.1"
TEMPORARY = "PREFECT__SERVER_EPHEMERAL"  # marks the server of a run without one, as Prefect does
GRACE_S = 10
LOOK_EVERY_S = 0.1

_url: str | None = None  # of the one that this process has started


def start_own_server() -> str:
    """Start a server with the settings in force; it ends with this process. Return its API's URL.

    Raises:
        UserError: it ended at once, or did not answer in time.
    """
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "host.prefect_app:create_app"]
    options = ["--host", HOST, "--port", str(port), "--log-level", "error"]
    marks = {"PREFECT_UI_ENABLED": "0", TEMPORARY: "1", "PREFECT__SERVER_FINAL": "1"}
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    server = subprocess.Popen([*command, *options], env={**os.environ, **marks, **settings})
    atexit.register(_stop, server)  # before Prefect registers its own: they still want to send
    global _url
    _url = f"http://{HOST}:{port}/api"
    _wait(server, f"{_url}/health")
    return _url


def is_own(url: str) -> bool:
    """Return True if this process has started the server at `url`."""
    return url == _url


def _wait(server: subprocess.Popen[Any], page: str) -> None:
    until = time.monotonic() + PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    with httpx.Client(trust_env=False) as client:
        while True:
            try:
                if client.get(page).is_success:
                    return
            except httpx.TransportError:
                pass
            if (code := server.poll()) is not None:
                raise UserError(f"Prefect's temporary server ended at its start (code {code})")
            if time.monotonic() > until:
                raise UserError(
                    "Prefect's temporary server does not answer; [server.ephemeral] in "
                    "prefect.toml says for how long a run waits"
                )
            time.sleep(LOOK_EVERY_S)


def _stop(server: subprocess.Popen[Any]) -> None:
    server.terminate()
    try:
        server.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def end_orphans() -> None:
    """End temporary servers of this folder whose flow was killed."""
    end([p for p in processes_with(TEMPORARY, "1") if _is_orphan(p)], GRACE_S)


def _is_orphan(server: psutil.Process) -> bool:
    """Return True if it works in this folder, and what started it here is gone."""
    try:
        if Path(server.cwd()) != Path.cwd():
            return False
        parent = server.parent()
        return parent is None or Path(parent.cwd()) != Path.cwd()
    except psutil.AccessDenied:  # the system's own first process has adopted it
        return True
    except (psutil.Error, OSError):
        return False
