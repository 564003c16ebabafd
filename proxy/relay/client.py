"""The client's side of a relay: its connection, and the few ways to write to it."""

import asyncio
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final, Protocol

import msgspec

from proxy.relay.outbox import Outbox

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
LAST_CHUNK: Final = b"0\r\n\r\n"


class Listener(Protocol):
    """Who writes to a client, and is told how it takes it."""

    def client_slow(self) -> None:
        """The client reads too slowly: hold back."""

    def client_ready(self) -> None:
        """It has caught up."""

    def client_gone(self) -> None:
        """Its connection is closed."""


class Client(msgspec.Struct, eq=False):
    """One request's way back. Without chunks (HTTP/1.0) a body of unknown length ends with the connection."""

    transport: asyncio.Transport
    outbox: Outbox
    correlation_id: str
    is_chunked: bool
    keeps_alive: bool
    head_sent: bool = False
    listener: Listener | None = None

    def head(
        self, status: int, content_type: bytes, length: int | None, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> bytes:
        """Status line and headers; without a length the body comes in chunks."""
        if length is None and not self.is_chunked:
            self.keeps_alive = False
        correlation_id = self.correlation_id.encode()
        lines = [
            b"HTTP/1.1 %d %b" % (status, _REASONS.get(status, "").encode()),
            b"X-Request-Id: " + correlation_id,
            b"X-Correlation-Id: " + correlation_id,
        ]
        if content_type:
            lines.append(b"Content-Type: " + content_type)
        if length is not None:
            lines.append(b"Content-Length: %d" % length)
        elif self.is_chunked:
            lines.append(b"Transfer-Encoding: chunked")
        if not self.keeps_alive:
            lines.append(b"Connection: close")
        elif not self.is_chunked:
            lines.append(b"Connection: keep-alive")
        lines.extend(map(b"%b: %b".__mod__, headers))
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def frame(self, body: bytes) -> bytes:
        """A piece of a body of unknown length."""
        return b"%x\r\n%b\r\n" % (len(body), body) if self.is_chunked else body

    def end(self) -> bytes:
        """What follows the last piece of such a body."""
        return LAST_CHUNK if self.is_chunked else b""

    def write(self, data: bytes) -> None:
        """Send some bytes."""
        self.outbox.put(self.transport, data)

    def finish(self, last: bytes) -> None:
        """Send the last bytes of an answer."""
        if last:
            self.outbox.put(self.transport, last)
        if not self.keeps_alive:
            # The server closes the connection as soon as it hears that the answer is over.
            self.outbox.flush()

    def answer(
        self,
        status: int,
        content_type: bytes,
        body: bytes,
        headers: Iterable[tuple[bytes, bytes]] = (),
        has_body: bool = True,
    ) -> None:
        """Send a whole answer; to a HEAD request without its body."""
        self.head_sent = True
        head = self.head(status, content_type, len(body), headers)
        self.finish(head + body if has_body else head)

    def break_off(self, last: bytes = b"") -> None:
        """Close without the end of the body, so that nobody takes it for whole, once what was written has gone out."""
        self.keeps_alive = False
        self.finish(self.frame(last) if last else b"")
        self.transport.close()

    def abort(self) -> None:
        """Close at once, dropping what the client has not read."""
        self.keeps_alive = False
        self.transport.abort()
