"""Taking connections: all that wait, each time.

uvloop's own server takes one in a turn of the event loop. A turn takes as long as all requests of that turn: the busier
a process, the fewer connections it took, and of 1,000 clients that came at once some waited for half a minute.
"""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from typing import Any, Final

from fleetpulse.telemetry import logger
from proxy.seldom import Seldom

_log = logger(__name__)
_log.addFilter(Seldom())

BACKLOG: Final = 2_048
# Taken in one turn, before requests get theirs.
TURN_CONNECTIONS: Final = 256
PAUSE_SECONDS: Final = 0.5
# The process or the machine has no room for another: those that wait, wait.
_FULL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listener:
    """Listens on every address of a host name. ``port`` is what was given, or for 0 what was found."""

    def __init__(self, make: Callable[[], asyncio.Protocol], sockets: list[socket.socket]) -> None:
        self._loop = asyncio.get_running_loop()
        self._make = make
        self._sockets = sockets
        self._taking: set[asyncio.Task[object]] = set()
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self.port: int = sockets[0].getsockname()[1]
        for listening in sockets:
            self._loop.add_reader(listening, self._take, listening)

    def close(self) -> None:
        """Take no more; connections that were taken stay."""
        for pause in self._pauses.values():
            pause.cancel()
        for listening in self._sockets:
            self._loop.remove_reader(listening)
            listening.close()

    def _take(self, listening: socket.socket) -> None:
        for _ in range(TURN_CONNECTIONS):
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._pause(listening, error)
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._serve(connection), name="connection")
            self._taking.add(task)
            task.add_done_callback(self._taking.discard)

    async def _serve(self, connection: socket.socket) -> None:
        """Hand the connection to its protocol; a client that has gone by now is none."""
        try:
            await self._loop.connect_accepted_socket(self._make, connection)
        except OSError:
            connection.close()

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        _log.error("cannot take connections", extra={"error": str(error)})
        self._loop.remove_reader(listening)
        self._pauses[listening] = self._loop.call_later(PAUSE_SECONDS, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        del self._pauses[listening]
        self._loop.add_reader(listening, self._take, listening)


async def listen(make: Callable[[], asyncio.Protocol], host: str, port: int, shared: bool) -> Listener:
    """Listen; ``shared`` lets other processes listen on the same port. Raises OSError, which says where."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as opened:
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            sockets = [
                opened.enter_context(_listening(family, at, shared)) for family, _, _, _, at in dict.fromkeys(found)
            ]
        except OSError as error:
            # A name that is not known has numbers of its own, and text.
            unknown = isinstance(error, socket.gaierror) or not error.errno
            why = error.strerror or str(error) if unknown else os.strerror(error.errno or 0)
            raise OSError(error.errno, f"cannot listen on {host}:{port}: {why}") from error
        opened.pop_all()
    return Listener(make, sockets)


def _listening(family: int, address: tuple[Any, ...], shared: bool) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # An IPv4 address of the same name has a socket of its own.
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening
