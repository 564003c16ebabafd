"""Delivery: every message once it can be, each kind in its order, without ever holding up who made it.

A message waits in memory while the way out works, and on disk, with all that follow it, as soon as it does not.
"""

import asyncio
import random
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from agent.signals import Signals
from agent.spool import Position, Spool
from agent.transport import Kind, RefusedError, Transport
from fleetpulse.stream.errors import NotDeliveredError
from fleetpulse.telemetry import logger

_log = logger(__name__)

# Beyond either of these, what waits in memory goes to disk: as much as the agent's sudden death may lose.
WAITING_MESSAGES: Final = 8
WAITING_SECONDS: Final = 2.0
RETRY_SECONDS: Final = (0.25, 5.0)
CONNECTION_CHECK_SECONDS: Final = 0.1
SYNC_SECONDS: Final = 1.0


@dataclass(slots=True)
class _Message:
    value: bytes
    made_at: float
    position: Position | None = None  # in the spool, once it is there


@dataclass(slots=True)
class Lane:
    """Messages of one kind on their way. submit() from the event loop; run() as a task, then close()."""

    kind: Kind
    transport: Transport
    spool: Spool
    signals: Signals
    _waiting: deque[_Message] = field(default_factory=deque)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _told: bool = False
    _synced_at: float = 0.0
    _dropped: int = 0  # of the spool's, how many the signal has

    def submit(self, value: bytes) -> None:
        """Take a message. Returns at once, whatever the state of the way out."""
        message = _Message(value, time.monotonic())
        self._waiting.append(message)
        if not self.spool.empty or self._overdue():
            self._spill()
        self._news.set()

    async def run(self) -> None:
        """Send until cancelled."""
        failures = 0
        while True:
            await self._until_worth_trying()
            batch = self._batch()
            if not batch:
                continue
            if await self._send(batch):
                failures = 0
                continue
            self._spill()
            await self._sync()
            failures += 1
            shortest, longest = RETRY_SECONDS
            await asyncio.sleep(min(longest, shortest * 2 ** min(failures, 8)) * random.uniform(0.5, 1.0))

    def close(self) -> None:
        """Put on disk what is unsent. After run() has ended."""
        self._spill()
        self.spool.close()
        self._report()

    @property
    def unsent(self) -> bool:
        """Whether anything waits, in memory or on disk."""
        return bool(self._waiting) or not self.spool.empty

    async def _until_worth_trying(self) -> None:
        while not self.unsent:
            self._news.clear()
            await self._news.wait()
        while not self.transport.connected:
            await self._sync()
            await asyncio.sleep(CONNECTION_CHECK_SECONDS)

    async def _sync(self) -> None:
        """Have the disk keep the spool, at most once in SYNC_SECONDS."""
        now = time.monotonic()
        if not self.spool.empty and now - self._synced_at >= SYNC_SECONDS:
            self._synced_at = now
            try:
                await asyncio.to_thread(self.spool.sync)
            except OSError as error:
                _log.error("spool: cannot sync", extra={"kind": self.kind, "error": repr(error)})

    def _overdue(self) -> bool:
        oldest = self._waiting[0]
        return len(self._waiting) > WAITING_MESSAGES or time.monotonic() - oldest.made_at > WAITING_SECONDS

    def _spill(self) -> None:
        """Move what waits in memory to disk. A message being sent is among it, until it has arrived."""
        for message in self._waiting:
            message.position = self.spool.append(message.value)
        self._waiting.clear()
        self._report()

    def _batch(self) -> list[_Message]:
        most = self.transport.at_once
        if self.spool.empty:
            return list(self._waiting)[:most]
        return [_Message(value, 0.0, position) for position, value in self.spool.peek(most)]

    async def _send(self, batch: list[_Message]) -> bool:
        """Whether all of a batch is settled. What is settled is forgotten, up to the first that is not."""
        began = time.monotonic()
        results = await asyncio.gather(
            *(self.transport.send(self.kind, message.value) for message in batch), return_exceptions=True
        )
        problem: BaseException | None = None
        for message, result in zip(batch, results, strict=True):
            if isinstance(result, RefusedError):
                self.signals.refused.labels(self.kind).inc()
                _log.error("message refused and dropped", extra={"kind": self.kind, "error": str(result)})
            elif result is None:
                self.signals.sent.labels(self.kind).inc()
            else:
                problem = result
                break
            self._settle(message)
        self._report()
        if problem is None:
            self.signals.delivery_seconds.labels(self.kind).observe(time.monotonic() - began)
            self._tell_recovered()
            return True
        if not isinstance(problem, NotDeliveredError):
            raise problem
        self._tell_failed(problem)
        return False

    def _settle(self, message: _Message) -> None:
        if message.position is not None:
            self.spool.advance(message.position)
        elif self._waiting and self._waiting[0] is message:
            self._waiting.popleft()

    def _tell_failed(self, error: NotDeliveredError) -> None:
        self.signals.failed.labels(self.kind).inc()
        if not self._told:
            _log.warning("not delivered, spooling", extra={"kind": self.kind, "error": str(error)})
        self._told = True

    def _tell_recovered(self) -> None:
        if self._told and self.spool.empty:
            _log.info("delivering again, spool drained", extra={"kind": self.kind})
            self._told = False

    def _report(self) -> None:
        self.signals.spool_bytes.labels(self.kind).set(self.spool.size_bytes)
        self.signals.spool_messages.labels(self.kind).set(self.spool.messages)
        self.signals.spool_dropped.labels(self.kind).inc(self.spool.dropped - self._dropped)
        self._dropped = self.spool.dropped
