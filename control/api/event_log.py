"""The newest events, for clients that follow them and for those that come back after a break.

Clients read this one bounded history, each at its own place: a slow one costs no memory, and when it falls out of the
history it is told that it missed something.
"""

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

EventKind = Literal["lifecycle", "archived", "worker", "gap"]
BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. ``data`` is a JSON object on one line."""

    sequence: int
    kind: EventKind
    data: bytes
    organization_id: str | None
    """Whose it is; None for what only operators may see."""


class EventLog:
    """Numbers events from 1. The numbers mean nothing to another process, so ids also name this one."""

    def __init__(self, most: int) -> None:
        self._events: deque[Event] = deque(maxlen=most)
        self._process = secrets.token_hex(6)
        self._news = asyncio.Event()
        self.newest = 0
        self.clients = 0
        self.closed = False

    def append(self, kind: EventKind, data: bytes, organization_id: str | None) -> None:
        """Add an event and wake those who wait."""
        self.newest += 1
        self._events.append(Event(self.newest, kind, data, organization_id))
        self._wake()

    def close(self) -> None:
        """End all streams: the service stops."""
        self.closed = True
        self._wake()

    def identify(self, sequence: int) -> str:
        """The id of an event for clients."""
        return f"{self._process}-{sequence}"

    def resume(self, last_event_id: str | None) -> tuple[int, bool]:
        """After which event a client goes on, and whether it missed some that are not known here."""
        if last_event_id is None:
            return self.newest, False
        process, _, number = last_event_id.partition("-")
        if process != self._process or not (number.isascii() and number.isdigit()) or len(number) > 18:
            return self.newest, True
        sequence = int(number)
        if sequence > self.newest:
            return self.newest, True
        return (sequence, False) if self.has_all_after(sequence) else (self.newest, True)

    def has_all_after(self, sequence: int) -> bool:
        """Whether nothing that came after an event was dropped."""
        return sequence >= self.newest - len(self._events)

    def after(self, sequence: int) -> Sequence[Event]:
        """Events after one, oldest first; at most BATCH."""
        skipped = sequence - (self.newest - len(self._events))
        return list(islice(self._events, max(0, skipped), max(0, skipped) + BATCH))

    async def wait(self, sequence: int, seconds: float) -> None:
        """Until there is something after an event, or the time is over."""
        if self.newest > sequence or self.closed:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
