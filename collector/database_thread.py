"""A database connection with a thread of its own.

libpq does its waiting without the interpreter's lock, so the event loop decodes the next batch while the server is
busy with the last one.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import psycopg

from fleetpulse.settings import DatabaseSettings

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# A frozen or vanished peer is noticed by the kernel within this time where it can be noticed at all.
TCP_TIMEOUT_MILLISECONDS: Final = 10_000
# What a stopped collector leaves locked is free again after this time, so that others can take its partitions.
IDLE_IN_TRANSACTION: Final = "3s"


# A thread that comes back from the network waits for the interpreter for as long as this while the loop decodes;
# Python's own 5 ms, at each of a COPY's many writes, would make the two take turns.
SWITCH_SECONDS: Final = 0.0002


class DatabaseThread:
    """Runs functions of a connection, one at a time, in order. Reconnects after an error."""

    def __init__(self, settings: DatabaseSettings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._connection: psycopg.Connection[Any] | None = None
        sys.setswitchinterval(SWITCH_SECONDS)

    async def run(
        self,
        work: Callable[Concatenate[psycopg.Connection[Any], Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """Run ``work(connection, …)``. Raises psycopg.Error; the connection is then closed, because what the server
        has of an unfinished conversation is unknown."""
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: self._run(lambda connection: work(connection, *args, **kwargs))
        )

    def _run(self, work: Callable[[psycopg.Connection[Any]], Result]) -> Result:
        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connection = self._connect()
        try:
            return work(connection)
        except psycopg.Error:
            self._connection = None
            connection.close()
            raise

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            self._settings.url.get_secret_value(),
            autocommit=True,
            connect_timeout=max(1, int(self._settings.connect_timeout_seconds)),
            application_name=f"fleetpulse-{self._name}",
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            tcp_user_timeout=TCP_TIMEOUT_MILLISECONDS,
            options=(
                # Rows and their offsets vanish together in a crash of the server, and the stream has them still.
                "-c synchronous_commit=off"
                f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION} -c lock_timeout=5s -c timezone=UTC"
            ),
        )

    def abort(self) -> None:
        """Cut the connection under a function that does not return; it then raises psycopg.Error."""
        connection = self._connection
        if connection is None or connection.closed:
            return
        with socket.socket(fileno=os.dup(connection.fileno())) as wire:
            wire.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """Close the connection once the function in progress has returned, cutting it after a second."""
        closing = asyncio.get_running_loop().run_in_executor(self._executor, self._close)
        done, _ = await asyncio.wait({closing}, timeout=1.0)
        if not done:
            self.abort()
            await closing
        self._executor.shutdown(wait=False)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
