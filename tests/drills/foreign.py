"""Requests that a page of another site can send to this machine, with a real HTTP client.

A browser lets a page send any "simple" request anywhere and, where the answer names the page's
origin, read it. With DNS rebinding the page's own name leads here: then all is readable that is
answered under that name.
"""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import httpx
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

ORIGINS = ("http://evil.example", "https://evil.example:4200", "http://127.0.0.1:9", "null")
SIMPLE = {"Content-Type": "text/plain"}  # needs no preflight
JSON = {"Content-Type": "application/json"}


def attack(method: str, url: str, body: str | None = None) -> list[str]:
    """Try one request in every way a page has; returns what came through, which must be nothing."""
    place = urlsplit(url)
    assert place.hostname and place.port
    tries = []
    for origin in ORIGINS:
        preflight = {
            "Origin": origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "content-type, authorization",
            "Access-Control-Request-Private-Network": "true",
        }
        tries.append(("OPTIONS", preflight, None))
        for kind in (SIMPLE, JSON) if body is not None else ({},):
            tries.append((method, {"Origin": origin, **kind}, body))
    for host in (
        "evil.example",
        f"evil.example:{place.port}",
        f"127.0.0.1.evil.example:{place.port}",
    ):
        own = {"Host": host, "Origin": f"http://{host}"}  # rebound: the page's own address
        tries += [(method, {"Host": host, **JSON}, body), (method, {**own, **JSON}, body)]
    came_through = []
    with httpx.Client(trust_env=False, timeout=30) as client:
        for verb, headers, content in tries:
            reply = client.request(verb, url, headers=headers, content=content)
            readable = [n for n in reply.headers if n.startswith("access-control-")]
            copied = "evil" in reply.headers.get("location", "")
            if reply.status_code not in (400, 403) or readable or copied:
                came_through.append(f"{verb} {url} {headers}: {reply.status_code} {reply.headers}")
    return came_through


def websocket(url: str, port: int, **headers: str) -> int | None:
    """Status of a refused handshake; None if it was accepted."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        origin = headers.pop("origin", None)
        try:
            with connect(url, sock=connection, origin=origin, subprotocols=["prefect"], proxy=None):
                return None
        except InvalidStatus as refused:
            return refused.response.status_code
