"""HTTP connections that are bounded in number, in how long they may lie idle, and in the size of a header.

Uvicorn ends a connection that is idle after an answer. Here also ends one on which no request arrives, or arrives a byte at
a time, one whose header does not end, and one whose client does not read its answer. A body that arrives too slowly or is
too large is the application's affair, which knows when the request began.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 << 10
"""URL and header fields of one request together; so much again for what stands between and behind the parts of a body."""

_LINGER = 1.0  # seconds in which a refused client may still send: closing at once would discard what it has to read


def bounded_protocol(timeout: float, connections: int) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn.

    Args:
        timeout: seconds for the header of a request, from when the connection is there, or from the first byte after the
            last request; and for any progress of an answer that the client has to read before more can be sent.
        connections: more than these at a time are refused with 503.
    """
    return type("BoundedProtocol", (_Bounded,), {"timeout": timeout, "most_connections": connections})


class _Bounded(HttpToolsProtocol):
    timeout: ClassVar[float]
    most_connections: ClassVar[int]

    _timer: asyncio.TimerHandle | None = None  # for what has to arrive
    _reading: asyncio.TimerHandle | None = None  # for what the client has to read
    _refused = False
    _unread = 0  # bytes since the parser last told of a whole header or of a part of a body: what it holds, at most

    # -- what uvicorn and the transport call -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            text = f"{self.most_connections} connections are open, as many as may be (--connections); try again later"
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, text, "Retry-After: 1\r\n")
        else:
            self._start_timer()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unread += len(data)
        super().data_received(data)
        if self._unread > MAX_HEADER_BYTES and not self._refused:
            self._refuse_header()
        if self._refused:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._start_timer()  # some bytes, and no request yet

    def on_headers_complete(self) -> None:
        self._unread = 0
        self._stop_timer()
        # by its parts, because what was received with it may be of the request before or of the body
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEADER_BYTES:
            self._refuse_header()
            raise ValueError("the parser is to stop here")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_reading()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        if not self._refused:
            self._refuse(HTTPStatus.BAD_REQUEST, "this is not an HTTP request")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_progress()

    def resume_writing(self) -> None:
        self._stop_reading()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._expect_progress()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._expect_progress()

    # -- the limits ------------------------------------------------------------------------------------------------------

    def _start_timer(self) -> None:
        """From now on, a request has to arrive."""
        if self._timer is None and not self.transport.is_closing():
            text = f"no request arrived within {self.timeout:g} s"
            self._timer = self.loop.call_later(self.timeout, self._refuse, HTTPStatus.REQUEST_TIMEOUT, text)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse_header(self) -> None:
        text = f"the header is larger than {MAX_HEADER_BYTES} bytes: send what is long in the body"
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)

    def _refuse(self, status: HTTPStatus, text: str, header: str = "") -> None:
        """Answer without a request, and close soon."""
        self._refused = True
        self._stop_timer()
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        if self.cycle is not None and not self.cycle.response_complete:
            # what went wrong is the body of a request that is being answered: this is now its answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = json.dumps({"error": text})
        self.transport.write(
            f"HTTP/1.1 {status.value} {status.phrase}\r\n{header}Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
        )
        self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER, self.transport.abort)

    def _expect_progress(self) -> None:
        """Give up when the client reads nothing of what is to be sent."""
        self._stop_reading()
        left = self.transport.get_write_buffer_size()

        def check() -> None:
            if self.transport.get_write_buffer_size() < left:
                self._expect_progress()
            else:
                self.transport.abort()

        if left:
            self._reading = self.loop.call_later(self.timeout, check)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
