"""The address of `hpgr serve`, and the processes that answer there."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest
from waiting import until

from hpgr.runtime import UserError
from hpgr.serving.listen import bind

SERVER = """
import os
from functools import partial

from fastapi import FastAPI

from hpgr.config import Serve
from hpgr.serving.listen import bind, run


def application():
    app = FastAPI()
    app.get("/")(os.getpid)
    return app


if __name__ == "__main__":
    listening = bind("127.0.0.1", 0)
    print(listening.getsockname()[1], flush=True)
    limits = Serve.model_construct(workers=2, receive_timeout_s=5, max_connections=10)
    run(partial(application), limits, listening)
"""


def test_a_port_in_use_is_one_clear_message():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot serve on 127.0.0.1:{port}: another process"):
            bind("127.0.0.1", port)


def test_an_address_that_is_reported_is_listened_on_and_given_once():
    """The kernel takes callers in before the application runs."""
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(UserError, match="another process listens there"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "a..b"])
def test_an_address_that_is_not_ours_is_one_clear_message(host):
    with pytest.raises(UserError, match=f"cannot serve on {host}:1"):
        bind(host, 18_000)


def test_no_part_of_an_answer_waits_for_the_caller_to_acknowledge_the_one_before():
    """Nagle's algorithm and delayed acknowledgements together cost 40 ms an answer."""
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        taken, _ = listening.accept()
        with taken:
            assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@contextmanager
def two_workers(tmp_path):
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    try:
        yield process, f"http://127.0.0.1:{process.stdout.readline().strip()}/"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def ask(address):
    """The process that takes the next connection."""
    return httpx.get(address, timeout=30).json()


def answering(address, count):
    """The processes that answer, once there are so many."""
    found = set()
    until(lambda: found.add(ask(address)) or len(found) >= count, f"{count} workers answer")
    return found


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_worker_that_dies_is_replaced_and_all_end_with_a_server_that_is_killed(tmp_path):
    with two_workers(tmp_path) as (process, address):
        first = answering(address, 2)
        assert process.pid not in first
        os.kill(killed := first.pop(), signal.SIGKILL)
        until(lambda: gone(killed), "the killed worker is gone")
        found = set()
        until(lambda: found.add(ask(address)) or found - first, "another one takes its place")
        process.kill()
        until(lambda: all(map(gone, first | found)), "no worker goes on holding the port")
