"""A guard before a server on this machine: it answers programs that name it, and its own pages.

A page of any site can send requests to 127.0.0.1, and by a name of its own that resolves to it
(DNS rebinding) even read the answers. So a request must name the server by a host that it is known
by, and where a browser says its page, that must be a page of the same address.
Reads and writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from hpgr.terminal import shown

KNOWN = ("127.0.0.1", "localhost", "[::1]")
HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\s\[\]:/?#@]+)(:\d*)?", re.ASCII)


class Guard:
    """ASGI middleware: 400 for a foreign Host, 403 for another Origin; websockets are closed.

    The address on which the connection came in counts as known: it was reached without a name.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        """`hosts` are names, without port, by which the server is known beside this machine's."""
        self.app = app
        self.hosts = {*KNOWN, *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may come in; refuse the rest without showing anything of the server."""
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "foreign page"})
        else:
            status, detail = refusal
            await JSONResponse({"detail": detail}, status)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        host = ",".join(headers.getlist("host")).lower()  # two of them are no host
        said = HOST.fullmatch(host)
        if said is None or not (said["name"] in self.hosts or _is_own(said["name"], scope)):
            return 400, (
                f"Host {shown(host)} is not a name of this server: call it by its address, or "
                "allow the name (docs/operations.md, Who may talk to the services)"
            )
        for origin in headers.getlist("origin"):
            if origin.lower().partition("://")[2] != host:
                return 403, (
                    f"a page of {shown(origin)} may not ask {shown(host)}: only its own pages and "
                    "programs may; a proxy must pass the Host on as the browser sent it"
                )
        return None


def _is_own(name: str, scope: Scope) -> bool:
    server = scope.get("server")
    return server is not None and name.strip("[]") == server[0]
