"""How simulated agents' messages reach the broker: at once, or out of a spool when it was away, as an agent's do."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from fleetpulse.stream.errors import NotDeliveredError
from fleetpulse.stream.producer import StreamProducer

# Messages on their way at most; beyond, the next ones wait, and the run falls behind its schedule, which is reported.
_IN_FLIGHT_MOST: Final = 20_000
# Messages kept while the broker is away, all agents together, in memory; beyond, the oldest are given up.
_SPOOLED_MOST: Final = 200_000
_TOGETHER: Final = 2_000
_AGAIN_SECONDS: Final = 0.2
# The spool is emptied at the end of a run for this long at most.
_END_SECONDS: Final = 60.0


@dataclass(slots=True)
class Counts:
    """Messages of one kind: made, acknowledged by the broker, and given up; and those that had to wait for the broker,
    which are acknowledged or given up in the end like all others."""

    sent: int = 0
    acked: int = 0
    failed: int = 0
    spooled: int = 0
    bytes_sent: int = 0


@dataclass(slots=True)
class _Message:
    topic: str
    value: bytes
    key: bytes
    counts: Counts
    acked: bool = False


class SimulatedDelivery:
    """Counts what becomes of each message. At the end, what waits is given up when the broker has taken nothing for
    ``patience_seconds``."""

    def __init__(self, producer: StreamProducer, patience_seconds: float) -> None:
        self._producer = producer
        self._patience_seconds = patience_seconds
        self._room = asyncio.Semaphore(_IN_FLIGHT_MOST)
        self._spool: deque[_Message] = deque()
        self._acked = 0
        self._spool_empty = asyncio.Event()
        self._spool_empty.set()
        self._sending = asyncio.TaskGroup()

    @contextlib.asynccontextmanager
    async def delivering(self) -> AsyncIterator[None]:
        """At the end of the block, each message has been acknowledged or given up."""
        drain = asyncio.create_task(self._drain(), name="simulated-spool")
        try:
            async with self._sending:
                yield
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    await self._emptied()
        finally:
            drain.cancel()
            await asyncio.wait({drain})
            if not drain.cancelled():
                drain.result()
            for message in self._spool:
                message.counts.failed += 1

    async def _emptied(self) -> None:
        """Raises TimeoutError when the broker takes nothing any more."""
        while not self._spool_empty.is_set():
            before = self._acked
            try:
                async with asyncio.timeout(self._patience_seconds):
                    await self._spool_empty.wait()
            except TimeoutError:
                if self._acked == before:
                    raise

    async def send(self, topic: str, value: bytes, key: bytes, counts: Counts) -> None:
        """Begin to deliver a message; returns when there is room for another one."""
        counts.sent += 1
        counts.bytes_sent += len(value)
        message = _Message(topic, value, key, counts)
        if not self._spool_empty.is_set():  # in order: nothing overtakes what waits
            self._keep(message)
            return
        await self._room.acquire()
        self._sending.create_task(self._deliver(message))

    async def _deliver(self, message: _Message) -> None:
        try:
            await self._try(message)
        finally:
            self._room.release()
        if not message.acked:
            self._keep(message)

    async def _try(self, message: _Message) -> None:
        with contextlib.suppress(NotDeliveredError):
            await self._producer.send(message.topic, message.value, message.key)
            message.acked = True
            message.counts.acked += 1
            self._acked += 1

    def _keep(self, message: _Message) -> None:
        message.counts.spooled += 1
        self._spool_empty.clear()
        self._spool.append(message)
        if len(self._spool) > _SPOOLED_MOST:
            self._spool.popleft().counts.failed += 1

    async def _drain(self) -> None:
        """Send what waits, oldest first."""
        while True:
            await asyncio.sleep(_AGAIN_SECONDS)
            while self._spool and await self._drain_some():
                pass
            if not self._spool:
                self._spool_empty.set()

    async def _drain_some(self) -> bool:
        """Whether the broker took them all; what it did not take waits on, in its place."""
        tried = [self._spool.popleft() for _ in range(min(_TOGETHER, len(self._spool)))]
        try:
            await asyncio.gather(*(self._try(message) for message in tried))
        finally:
            left = [message for message in tried if not message.acked]
            self._spool.extendleft(reversed(left))
        return not left
