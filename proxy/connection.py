"""A client's connection for as long as its requests are plain and come one after the other.

These need neither aiohttp's parser nor a task. The first that is not plain, or does not come whole, or must wait for
the database, goes to aiohttp with all that the client has sent, and the connection stays there.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Final, cast

from proxy import errors
from proxy.call import correlation_id
from proxy.errors import ProxyError
from proxy.pipeline import Request
from proxy.plain import Head, Plain, read_again
from proxy.relay.attempts import Attempt
from proxy.relay.carriage import Result
from proxy.relay.client import Client
from proxy.server import fault

if TYPE_CHECKING:
    from proxy.front import Front

# A body that comes in pieces is waited for so long, and up to this size.
HELD_SECONDS: Final = 0.1
HELD_BYTES: Final = 262_144
# What a client sends on while it waits for an answer.
AHEAD_BYTES: Final = 65_536


class PlainConnection(asyncio.Protocol):
    """One client. ``idle_since`` is monotonic seconds."""

    __slots__ = (
        *("_client", "_front", "_head", "_held", "_is_paused", "_plain", "_request", "_timer"),
        *("idle_since", "transport"),
    )

    transport: asyncio.Transport

    def __init__(self, front: "Front") -> None:
        self._front = front
        self._head: Head | None = None
        self._held = bytearray()
        self._plain: Plain | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._client: Client | None = None
        self._request: Request | None = None
        self._is_paused = False
        self.idle_since = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether the client has sent nothing that has no answer yet."""
        return self._client is None and not self._held

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP_NODELAY is set by whoever takes the connection."""
        self.transport = cast(asyncio.Transport, transport)
        self.idle_since = time.monotonic()
        self._front.plain.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The engine is told at once."""
        self._front.plain.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        client, self._client = self._client, None
        if client is not None and client.listener is not None:
            client.listener.client_gone()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._is_paused = True
        if self._client is not None and self._client.listener is not None:
            self._client.listener.client_slow()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._is_paused = False
        if self._client is not None and self._client.listener is not None:
            self._client.listener.client_ready()

    def data_received(self, data: bytes) -> None:
        """A request, or a piece of one."""
        if self._client is not None:
            self._held += data
            if len(self._held) > AHEAD_BYTES:
                self.transport.pause_reading()
            return
        plain = self._plain
        if plain is None:
            front = self._front
            if self._head is not None:
                plain = read_again(self._head, data, front.body_bytes)
            if plain is None and (plain := front.read(data)) is None:
                self._hand_over(data)
                return
        if self._held:
            self._held += data
            if len(self._held) < plain.size:
                return
            data = bytes(self._held)
        if len(data) == plain.size:
            self._begin(plain, data)
        elif len(data) < plain.size <= HELD_BYTES:
            self._plain = plain
            self._held += data
            self._timer = asyncio.get_running_loop().call_later(HELD_SECONDS, self._hand_over_held)
        else:
            self._hand_over(data)

    def stop(self) -> None:
        """Take no further request."""
        if self._client is not None:
            self._client.keeps_alive = False
        elif not self._held:
            self.transport.close()

    def _begin(self, plain: Plain, data: bytes) -> None:
        pipeline, head = self._front.pipeline, plain.head
        headers = head.headers
        key = pipeline.known_key(head)
        if key is None:
            self._hand_over(data)
            return
        self._head = head
        if self._timer is not None:
            # It is whole now.
            self._timer.cancel()
            self._timer = self._plain = None
            self._held.clear()
        client = self._client = Client(
            self.transport,
            pipeline.outbox,
            correlation_id(headers.get("x-correlation-id"), headers.get("x-request-id")),
            is_chunked=True,
            keeps_alive=not self._front.is_stopping,
        )
        request = self._request = pipeline.begin(client, head.path)
        try:
            pipeline.admit(request, key)
            pipeline.carry(request, key, headers, data[plain.head_size :], self._over)
        except Exception as error:  # noqa: BLE001 - as at aiohttp's: a fault of ours is one request's, and told
            self._over(error)

    def _over(self, result: Result) -> None:
        """The request has been answered, or is to be refused."""
        request, self._request = self._request, None
        if request is None:
            # Something below has failed on this request before.
            if isinstance(result, Exception):
                fault(result)
                self.transport.abort()
            return
        if isinstance(result, Attempt):
            request.answered(result)
        else:
            _refuse(request, result)
        self._front.pipeline.over(request)
        client, self._client = self._client, None
        if client is None or self.transport.is_closing():
            return
        if not client.keeps_alive:
            self.transport.close()
        elif self._held:
            self._hand_over(b"")
        else:
            self.idle_since = time.monotonic()

    def _hand_over_held(self) -> None:
        self._hand_over(b"")

    def _hand_over(self, data: bytes) -> None:
        """From here on aiohttp reads what this client sends. ``data`` is all of it, or nothing more than was held."""
        data = data or bytes(self._held)
        if self._timer is not None:
            self._timer.cancel()
        self._front.plain.discard(self)
        successor = self._front.successor()
        self.transport.set_protocol(successor)
        successor.connection_made(self.transport)
        if self._is_paused:
            successor.pause_writing()
        self.transport.resume_reading()
        successor.data_received(data)


def _refuse(request: Request, error: Exception) -> None:
    """Tell the client, if it does not have a part of an answer."""
    if not isinstance(error, ProxyError):
        error = fault(error)
    request.refused(error)
    client = request.client
    if client.head_sent:
        client.abort()
        return
    headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    client.answer(error.status, b"application/json", errors.body(error, client.correlation_id), headers)
