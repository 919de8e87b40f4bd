"""Callers who keep `hpgr serve` waiting or leave a request's end unclear, over real sockets."""

import socket
import threading
import time
from contextlib import ExitStack
from functools import partial

import httpx
import pytest
import uvicorn
from waiting import until

from hpgr.serving.protocol import PunctualHTTP

BIG = 64 * 2**20  # more than the buffers of a socket hold
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"


TIMEOUT_S, MOST = 0.5, 20


async def echo(scope, receive, send):
    """Answer with the length of the body; a large answer for /big."""
    if scope["type"] != "http":
        return
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    body = b"x" * BIG if scope["path"] == "/big" else str(length).encode()
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port():
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(200)
    impatient = partial(PunctualHTTP, timeout_s=TIMEOUT_S, max_connections=MOST)
    config = uvicorn.Config(echo, http=impatient, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()
    listening.close()


def connect(port):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(60)  # a server that never cuts fails the test
    return connection


def everything(connection):
    """Bytes that arrive until the server closes; the test waits for that."""
    parts = []
    try:
        while part := connection.recv(2**16):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def is_served(port):
    return httpx.post(f"http://127.0.0.1:{port}/", content=b"abc", trust_env=False).text == "3"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", b" 408 "),
        (b"POST / HT", b" 408 "),
        (POST + b"X-Slow: ", b" 408 "),
        (POST + b"Content-Length: 10\r\n\r\nabc", b" 408 "),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", b" 408 "),
    ],
)
def test_a_request_that_stops_half_way_is_cut_and_reported(port, sent, said):
    with connect(port) as slow:
        slow.sendall(sent)
        assert said in everything(slow)


@pytest.mark.parametrize("head", [b"X", POST + b"X-Slow: ", POST + b"Content-Length: 9999\r\n\r\n"])
def test_a_request_that_comes_byte_by_byte_is_cut(port, head):
    """uvicorn's own time for an idle connection begins anew with each byte."""
    with connect(port) as slow:
        slow.sendall(head)
        slow.settimeout(0.05)
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 1000:  # 50 seconds
                slow.sendall(b"x")
                sent += 1
                try:
                    if not slow.recv(1000):
                        raise ConnectionError
                except TimeoutError:
                    continue


def test_an_answer_that_is_not_taken_is_cut(port):
    with connect(port) as slow:
        slow.sendall(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n")
        peer = slow.getsockname()
        until(lambda: _is_open(port, peer), "the server accepts")
        until(lambda: not _is_open(port, peer), "the server cuts")
        assert len(everything(slow)) < BIG


def _is_open(port, peer):
    import psutil

    return any(
        c.laddr.port == port and c.raddr == peer and c.status == psutil.CONN_ESTABLISHED
        for c in psutil.Process().net_connections("tcp")
        if c.raddr
    )


def test_the_time_begins_anew_with_each_request(port):
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        end = time.monotonic() + 3 * TIMEOUT_S
        while time.monotonic() < end:
            assert client.post("/", content=b"abcd").text == "4"
            time.sleep(0.1)


def test_others_are_served_however_many_keep_the_server_waiting(port):
    """More than may be connected: the one that is waited for longest goes."""
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(port)) for _ in range(3 * MOST)]
        for connection in slow[-MOST:]:
            connection.sendall(POST)
        assert is_served(port)
        assert all(b" 408 " in (said := everything(c)) or said == b"" for c in slow)
    assert is_served(port)


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + CHUNKS,
        b"transfer-encoding: chunked\r\nCONTENT-LENGTH: 0\r\n\r\n" + CHUNKS,
        b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"Content-Length: 5, 6\r\n\r\nhello",
        b"Content-Length: 5\r\nX: y\r\nContent-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
        b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
        b"Content-Length: -5\r\n\r\nhello",
        b"Content-Length: +5\r\n\r\nhello",
    ],
)
@pytest.mark.parametrize("before", [b"", POST + b"Content-Length: 2\r\n\r\nhi"])
def test_a_request_whose_end_is_not_clear_is_refused(port, framing, before):
    """Also as the second of a connection."""
    with connect(port) as caller:
        caller.sendall(before + POST + framing)
        answers = everything(caller)
    assert answers.count(b"HTTP/1.1 ") == 1 + bool(before)
    assert answers.count(b"HTTP/1.1 400 ") == 1


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS,
        b"X-Content-Length: 7\r\nContent-Length: 5\r\n\r\nhello",
        b"Content-Length: 39\r\n\r\n\nContent-Length: 9\nContent-Length: 9\n\n\n",
    ],
)
def test_a_clear_one_is_answered(port, framing):
    with connect(port) as caller:
        caller.sendall(POST + b"Connection: close\r\n" + framing)
        assert everything(caller).startswith(b"HTTP/1.1 200 ")
