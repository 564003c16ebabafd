"""Whether the database answers, asked on a connection of its own: a busy pool is no outage."""

import asyncio
import contextlib
import os
import socket
from types import TracebackType
from typing import Final, Self

import psycopg

from control.database import UnavailableError
from fleetpulse.database import DatabaseError
from fleetpulse.database.connect import Connection, connect
from fleetpulse.settings import DatabaseSettings
from fleetpulse.tasks import end
from fleetpulse.telemetry import logger

_log = logger(__name__)

TIMEOUT_SECONDS: Final = 2.0


class Probe:
    """Asks the database for a sign of life."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._connection: Connection | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._disconnect()

    async def ask(self) -> None:
        """Return once there is an answer. Raises UnavailableError after TIMEOUT_SECONDS at the latest."""
        question = asyncio.create_task(self._ask())
        try:
            done, _ = await asyncio.wait({question}, timeout=TIMEOUT_SECONDS)
            if not done:
                raise UnavailableError(f"it does not answer within {TIMEOUT_SECONDS:g} s")
            question.result()
        except DatabaseError as error:
            _log.debug("no connection to the database", extra={"reason": str(error)})
            raise UnavailableError("it cannot be reached, or does not let us in") from error
        except psycopg.Error as error:
            await self._disconnect()
            raise UnavailableError(f"the connection failed ({type(error).__name__})") from error
        finally:
            if not question.done():
                await self._give_up(question)

    async def _ask(self) -> None:
        if self._connection is None or self._connection.closed:
            self._connection = await connect(self._settings, "fleetpulse-control-probe")
        await self._connection.execute("SELECT 1")

    async def _give_up(self, question: "asyncio.Task[None]") -> None:
        """Let a question end that has no answer.

        Cancelled, psycopg would try for ten seconds to cancel the query at the server; at the end of its connection it
        gives up. Only it may close the socket: libuv aborts a process that it should wait for a closed one.
        """
        connection = self._connection
        with contextlib.suppress(psycopg.Error, DatabaseError):
            if connection is None or connection.closed:
                await end(question)
            else:
                with socket.socket(fileno=os.dup(connection.fileno())) as same, contextlib.suppress(OSError):
                    same.shutdown(socket.SHUT_RDWR)
                await question
        await self._disconnect()

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
