"""HTTP/1.1 as uvicorn speaks it, with limits on what a caller may keep waiting or leave unclear.

uvicorn closes an idle connection after an answer, but waits without limit for a request that never
comes, comes byte by byte, or whose answer is never taken. Reads and writes nothing.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_END = re.compile(rb"\n\r?\n")
LATE = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)
FRAMING = re.compile(rb"^(?:content-length|transfer-encoding)[ \t]*:", re.MULTILINE | re.IGNORECASE)


class OneFraming(h11.Connection):
    """Refuse a request that says more than once where its body ends.

    Two servers that believe different lines disagree on where the next request begins (request
    smuggling); h11 lets Transfer-Encoding win and drops a repeated length.
    """

    def next_event(self) -> Any:
        """See h11.

        Raises:
            h11.RemoteProtocolError: what came is no HTTP, or its end is not clear.
        """
        if self.their_state is h11.IDLE:
            waiting = self.trailing_data[0].lstrip(b"\r\n")
            end = HEAD_END.search(waiting)
            if end and len(FRAMING.findall(waiting, 0, end.start() + 1)) > 1:
                raise h11.RemoteProtocolError("Content-Length or Transfer-Encoding, not several")
        return super().next_event()


class PunctualHTTP(H11Protocol):
    """Give a caller `timeout_s` for a whole request, and as long to take the answer.

    Beyond `max_connections` the one that has kept the server waiting longest is cut, so that
    silent connections keep no caller out.
    """

    def __init__(
        self, *arguments: Any, timeout_s: float, max_connections: int, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.timeout_s, self.max_connections = timeout_s, max_connections
        size = self.config.h11_max_incomplete_event_size
        self.conn = OneFraming(h11.SERVER, *([] if size is None else [size]))
        self.waited_since = 0.0
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit of the first request."""
        super().connection_made(transport)
        self._begin_to_wait()
        if len(self.connections) > self.max_connections:
            peers = [peer for peer in self.connections if isinstance(peer, PunctualHTTP)]
            waiting = [peer for peer in peers if peer.keeps_waiting]
            min(waiting, key=lambda peer: peer.waited_since, default=self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time limit."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Start the time limit for taking the answer and for the next request."""
        self._begin_to_wait()
        super().on_response_complete()

    @property
    def keeps_waiting(self) -> bool:
        """True if the caller has something to do: send on, or take what was sent."""
        sending = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        return sending or self.transport.get_write_buffer_size() > 0

    def _begin_to_wait(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self.waited_since = self.loop.time()
        self._deadline = self.loop.call_later(self.timeout_s, self._cut)

    def _cut(self) -> None:
        """Close; a caller who got no answer yet gets a 408 first."""
        if not self.keeps_waiting:
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = b'{"detail": "the request did not come whole in %g s"}' % self.timeout_s
            self.transport.write(LATE % (len(body), body))
        self.transport.abort()
