"""Connections to engines, kept for the next request."""

import asyncio
import ssl
from collections import defaultdict
from collections.abc import Callable
from typing import Final, Protocol, cast

from proxy.fleet import Address
from proxy.relay.answer import LastHead

SWEEP_SECONDS: Final = 1.0


class Reader(Protocol):
    """Who gets what the engine sends."""

    def received(self, data: bytes) -> None:
        """Some bytes have come."""

    def closed(self, error: Exception | None) -> None:
        """No more will."""


class EngineConnection(asyncio.Protocol):
    """One connection; it carries one exchange at a time, and nothing is accepted on it between two."""

    __slots__ = ("_lost", "address", "idle_since", "last_head", "reader", "transport", "used")

    transport: asyncio.Transport

    def __init__(self, address: Address, lost: Callable[["EngineConnection"], None]) -> None:
        self.address = address
        self.reader: Reader | None = None
        self.last_head: LastHead | None = None
        self.idle_since = 0.0
        self.used = False
        """Whether it carried a request before: then the engine may have closed it just now."""
        self._lost = lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The event loop sets TCP_NODELAY on it."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Straight to the exchange."""
        reader = self.reader
        if reader is None:
            self.transport.abort()
        else:
            reader.received(data)

    def eof_received(self) -> bool:
        """The engine will send no more; it gets no more either."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Told to the exchange, once."""
        reader, self.reader = self.reader, None
        if reader is None:
            self._lost(self)
        else:
            reader.closed(exc)


class Pool:
    """Idle connections by engine, the last used first."""

    def __init__(self, idle_seconds: float, idle_most: int, connect_timeout_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._idle_most = idle_most
        self._connect_timeout_seconds = connect_timeout_seconds
        self._idle: dict[Address, list[EngineConnection]] = defaultdict(list)
        self._tls: ssl.SSLContext | None = None

    def __len__(self) -> int:
        return sum(map(len, self._idle.values()))

    def take(self, address: Address) -> EngineConnection | None:
        """An idle connection that is open, as far as is known."""
        idle = self._idle.get(address)
        while idle:
            connection = idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def connect(self, address: Address) -> EngineConnection:
        """A new connection. Raises OSError, TimeoutError among them."""
        loop = asyncio.get_running_loop()
        if address.tls and self._tls is None:
            self._tls = ssl.create_default_context()
        async with asyncio.timeout(self._connect_timeout_seconds):
            _, connection = await loop.create_connection(
                lambda: EngineConnection(address, self._forget),
                address.host,
                address.port,
                ssl=self._tls if address.tls else None,
            )
        return connection

    def put(self, connection: EngineConnection, now: float) -> None:
        """Keep a connection that has carried an exchange to its end."""
        connection.reader = None
        idle = self._idle[connection.address]
        if connection.transport.is_closing() or len(idle) >= self._idle_most:
            connection.transport.close()
            return
        connection.used, connection.idle_since = True, now
        idle.append(connection)

    def sweep(self, now: float) -> None:
        """Close connections that nobody wanted for long."""
        for address, idle in list(self._idle.items()):
            old = 0
            while old < len(idle) and now - idle[old].idle_since > self._idle_seconds:
                idle[old].transport.close()
                old += 1
            del idle[:old]
            if not idle:
                del self._idle[address]

    def close(self) -> None:
        """Close all of them."""
        for idle in self._idle.values():
            for connection in idle:
                connection.transport.abort()
        self._idle.clear()

    def _forget(self, connection: EngineConnection) -> None:
        idle = self._idle.get(connection.address)
        if idle is not None and connection in idle:
            idle.remove(connection)
