"""The parts of the stack as the supervisor handles them, whatever they are."""

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from fleetpulse.local.processes import Child

SERVICE_STOP_SECONDS: Final = 6.0


class Server(Protocol):
    """A database server or a broker."""

    @property
    def child(self) -> Child:
        """Its process, once it was started."""

    @property
    def log_file(self) -> Path:
        """Its log."""

    def start(self) -> None:
        """Start it and wait until it can be used. Raises StartError."""

    def stop(self) -> None:
        """End it in order."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the stack. ``child`` may be asked once it was started; ``start`` and ``stop`` block."""

    name: str
    log_file: Path
    start: Callable[[], None]
    stop: Callable[[], None]
    child: Callable[[], Child]

    async def begin(self) -> None:
        """Start it. Raises StartError."""
        await asyncio.to_thread(self.start)

    async def end(self) -> None:
        """End it in order, by force when that takes too long; nothing happens when it does not run."""
        await asyncio.to_thread(self.stop)


def server_part(name: str, server: Server) -> Part:
    """A server that knows itself when it is ready."""
    return Part(name, server.log_file, server.start, server.stop, lambda: server.child)


def service_part(child: Child, stop_seconds: float = SERVICE_STOP_SECONDS) -> Part:
    """A process that is started without waiting for it."""
    return Part(
        child.name,
        child.log_file,
        child.start,
        lambda: child.stop(signal.SIGTERM, stop_seconds),
        lambda: child,
    )
