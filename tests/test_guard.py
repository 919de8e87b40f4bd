"""Requests that hpgr.serving.guard lets through, as an application behind it sees them."""

import asyncio

import pytest

from hpgr.serving.guard import Guard


def ask(host=(), origin=(), kind="http", hosts=(), server=("127.0.0.1", 8000)):
    """(whether the application was reached, the messages that the caller got)."""
    reached, sent = [], []

    async def app(scope, receive, send):
        reached.append(scope["type"])

    async def send(message):
        sent.append(message)

    headers = [(b"host", h.encode("latin-1")) for h in host]
    headers += [(b"origin", o.encode("latin-1")) for o in origin]
    scope = {"type": kind, "headers": headers, "server": server}
    asyncio.run(Guard(app, hosts)(scope, None, send))
    return bool(reached), sent


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8000",
        "LOCALHOST:1",
        "[::1]:8000",
        "hpgr.example",
        "HPGR.example:443",
    ],
)
def test_names_of_the_server_are_let_through(host):
    assert ask([host], hosts=["hpgr.example"])[0]
    assert ask([host], [f"http://{host}"], hosts=["hpgr.example"])[0]
    assert ask([host], [f"https://{host}"], hosts=["hpgr.example"])[0]  # a proxy took TLS off


def test_the_address_of_the_connection_is_a_name_of_the_server():
    assert ask(["10.0.0.7:8000"], server=("10.0.0.7", 8000))[0]
    assert not ask(["10.0.0.8:8000"], server=("10.0.0.7", 8000))[0]
    assert not ask(["10.0.0.8:8000"], server=None)[0]


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.",
     "127.0.0.1@evil.example", "evil.example@127.0.0.1", "127.0.0.1/..", "127.0.0.1:80:80",
     "[::1", "::1", "", " ", "127.0.0.1 ", "0.0.0.0", "*", "127.0.0.1,evil.example", "\xff"],
)  # fmt: skip
def test_foreign_names_are_not(host):
    reached, (start, body) = ask([host])
    assert not reached
    assert start["status"] == 400
    assert b"is not a name of this server" in body["body"]


def test_no_host_and_two_hosts_are_none():
    assert not ask([])[0]
    assert not ask(["127.0.0.1", "127.0.0.1"])[0]


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "", "http://127.0.0.1", "http://127.0.0.1:8001",
     "http://localhost:8000", "http://127.0.0.1:8000.evil.example", "file://", "127.0.0.1:8000",
     "http://evil.example@127.0.0.1:8000"],
)  # fmt: skip
def test_pages_of_another_origin_are_refused_and_read_nothing(origin):
    reached, (start, _) = ask(["127.0.0.1:8000"], [origin])
    assert not reached
    assert start["status"] == 403
    assert not [name for name, _ in start["headers"] if name.startswith(b"access-control")]


def test_one_foreign_origin_among_several_is_enough():
    assert not ask(["127.0.0.1:8000"], ["http://127.0.0.1:8000", "http://evil.example"])[0]


@pytest.mark.parametrize("wrong", [{"host": ["evil.example"]}, {"origin": ["http://evil.example"]}])
def test_a_websocket_of_another_page_is_closed_before_it_is_accepted(wrong):
    reached, sent = ask(**{"host": ["127.0.0.1:8000"], **wrong}, kind="websocket")
    assert not reached
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_the_applications_start_is_no_request():
    assert ask(kind="lifespan")[0]


def test_a_refusal_shows_little_of_what_was_sent():
    for wrong in (
        {"host": ["x" * 10**6]},
        {"host": ["localhost"], "origin": ["http://" + "x" * 10**6]},
    ):
        _, (_, body) = ask(**wrong)
        assert len(body["body"]) < 500
