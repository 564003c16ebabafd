"""The client's side: as cheap as it can be, so that the gateway has a core for itself."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Self, cast

from stub_engine import MODEL

_PROMPT = "You are a helpful assistant. Answer shortly, and say so when you do not know. " * 18


@dataclass(frozen=True)
class Target:
    """Where requests go; ``pid`` None is the engine itself."""

    name: str
    port: int
    pid: int | None = None
    headers: str = ""

    def request(self, events: int, milliseconds: int, is_stream: bool = True) -> bytes:
        body = json.dumps(
            {
                "model": MODEL,
                "messages": [{"role": "system", "content": _PROMPT}, {"role": "user", "content": "What is a fleet?"}],
                "max_tokens": events,
                "seed": milliseconds,
                "stream": is_stream,
            }
        )
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAccept: */*\r\n{self.headers}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return (head + body).encode()


class _Connection(asyncio.Protocol):
    """One request at a time. ``first`` is the future of an answer's first event, ``whole`` of its end."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[float] = loop.create_future()
        self.whole: asyncio.Future[None] = loop.create_future()
        self.received = b""

    @classmethod
    async def to(cls, target: Target) -> Self:
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", target.port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        for future in (self.first, self.whole):
            if not future.done():
                future.set_exception(ConnectionError(f"the connection was closed: {error}"))
                future.exception()  # seen, also where nobody waits for it

    def fail_unless_200(self, data: bytes) -> None:
        if not data.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(f"answered with {data[:600]!r}")


class Stream(_Connection):
    """Counts events."""

    def __init__(self) -> None:
        super().__init__()
        self.events = 0
        self._last = 0

    def data_received(self, data: bytes) -> None:
        # An event ends in an empty line, of which a read may have only the second half.
        self.events += data.count(b"\n\n") + (self._last == 10 and data[0] == 10)
        self._last = data[-1]
        if not self.first.done() and self.events:
            self.first.set_result(time.perf_counter())


class Caller(_Connection):
    """Asks again as soon as there is an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = 0
        self._length = 0
        self._request = b""

    def start(self, request: bytes) -> None:
        self._request = request
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self.received:
            data = self.received + data
        if not self._is_whole(data):
            self.received = data
            return
        if not self.first.done():
            self.fail_unless_200(data)
            self.first.set_result(time.perf_counter())
        self.received, self._length = b"", 0
        self.answers += 1
        self.transport.write(self._request)

    def _is_whole(self, data: bytes) -> bool:
        if not self._length:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                return False
            at = data.lower().find(b"content-length:", 0, end)
            if at < 0:
                return data.endswith(b"\r\n0\r\n\r\n")
            self._length = end + 4 + int(data[at + 15 : data.index(b"\r\n", at)])
        return len(data) >= self._length


class Prober(_Connection):
    """One short stream after the other, with the time to its first event."""

    async def ask(self, request: bytes) -> float:
        """Seconds to the first event; returns once the answer is over."""
        loop = asyncio.get_running_loop()
        self.first, self.whole, self.received = loop.create_future(), loop.create_future(), b""
        started = time.perf_counter()
        self.transport.write(request)
        first = await self.first
        await self.whole
        return first - started

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self.received += data
        if not self.first.done() and b"data: " in self.received:
            self.fail_unless_200(self.received)
            self.first.set_result(now)
        if self.received.endswith(b"\r\n0\r\n\r\n"):
            self.whole.set_result(None)


class Streams:
    """So many open streams."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._streams: list[Stream] = []

    @property
    def events(self) -> int:
        return sum([stream.events for stream in self._streams])

    async def open(self, count: int, events: int, milliseconds: int) -> None:
        """Open them over the time of a step, and wait until each has had its first event."""
        request = self._target.request(events, milliseconds)
        for _ in range(count):
            stream = await Stream.to(self._target)
            stream.transport.write(request)
            self._streams.append(stream)
        await asyncio.gather(*(stream.first for stream in self._streams))

    def close(self) -> None:
        for stream in self._streams:
            stream.transport.abort()
