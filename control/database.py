"""Reading the database, whether or not it is there: a query has an answer or an UnavailableError within its time."""

import asyncio
import contextlib
import logging
import select
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, LiteralString, Self

import psycopg
from psycopg import AsyncConnection
from psycopg.sql import Composed
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from fleetpulse.settings import ControlSettings, DatabaseSettings
from fleetpulse.telemetry import logger

_log = logger(__name__)

Parameters = Mapping[str, Any]
Row = tuple[Any, ...]

# Beyond the server's own statement timeout: time for its error to arrive.
GRACE_SECONDS: Final = 1.0
# The pool gives up connecting this soon and tries anew at the next query, or its pauses would double up to minutes.
RECONNECT_SECONDS: Final = 1.0
CLOSE_SECONDS: Final = 2.0


class UnavailableError(Exception):
    """There is no answer from the database now; the message says why, for people, without addresses or secrets."""


class QueryTimeoutError(UnavailableError):
    """The query takes longer than it may."""


class Database:
    """A pool of connections, read-only but for transaction().

    ``lacking`` says why there are no answers now, or is None; queries then fail at once, those under way too.
    """

    def __init__(self, settings: ControlSettings, database: DatabaseSettings) -> None:
        self._timeout_seconds = settings.query_timeout_seconds
        self.lacking: str | None = "not connected yet"
        self._waiting: set[asyncio.Future[None]] = set()
        self._abandoned: set[asyncio.Task[list[Row]]] = set()
        self._pool: AsyncConnectionPool[AsyncConnection[Row]] = AsyncConnectionPool(
            database.url.get_secret_value(),
            kwargs={
                "autocommit": True,
                # The best plan depends on the parameters, and poolers dislike prepared statements.
                "prepare_threshold": None,
                "connect_timeout": max(1, round(database.connect_timeout_seconds)),
                "application_name": "fleetpulse-control",
            },
            min_size=1,
            max_size=settings.database_connections,
            timeout=settings.query_timeout_seconds,
            reconnect_timeout=RECONNECT_SECONDS,
            configure=self._configure,
            check=_check,
            name="fleetpulse-control",
            open=False,
        )
        # It would log each attempt; we log the outage.
        logging.getLogger("psycopg.pool").setLevel(logging.ERROR)

    async def __aenter__(self) -> Self:
        await self._pool.open(wait=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._abandoned:
            await asyncio.wait(self._abandoned, timeout=CLOSE_SECONDS)
        await self._pool.close(timeout=CLOSE_SECONDS)

    def statistics(self) -> Mapping[str, int]:
        """The pool's own counts."""
        return self._pool.get_stats()

    async def rows(
        self, statement: LiteralString | bytes | Composed, parameters: Parameters | None = None, *, binary: bool = False
    ) -> list[Row]:
        """All rows of a query; ``binary`` is the quicker way for arrays of numbers. Raises UnavailableError."""
        if self.lacking is not None:
            raise self._refusal()
        return await self._answer(self._query(statement, parameters, binary))

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection[Row]]:
        """A transaction that may write; what the block raises rolls it back. Raises UnavailableError.

        Errors of integrity come through as they are: they say something about the request, not about the database.
        """
        if self.lacking is not None:
            raise self._refusal()
        with self._translated():
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute("SET TRANSACTION READ WRITE")
                yield connection

    def accept(self) -> None:
        """Let queries through."""
        if self.lacking is not None:
            _log.info("database usable")
        self.lacking = None

    def refuse(self, reason: str) -> None:
        """Let queries fail at once, with this reason."""
        if self.lacking != reason:
            _log.warning("database unavailable", extra={"reason": reason})
        self.lacking = reason
        for refused in self._waiting:
            if not refused.done():
                refused.set_result(None)

    async def _answer(self, asked: Coroutine[Any, Any, list[Row]]) -> list[Row]:
        """Wait no longer than allowed: cancelling a query on a frozen server takes psycopg another ten seconds."""
        query = asyncio.create_task(asked)
        refused = asyncio.get_running_loop().create_future()
        self._waiting.add(refused)
        try:
            await asyncio.wait(
                {query, refused},
                timeout=self._timeout_seconds + GRACE_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            self._waiting.discard(refused)
            if not query.done():
                self._abandon(query)
        if query.done():
            return query.result()
        if self.lacking is not None:
            raise self._refusal()
        raise UnavailableError(f"the database did not answer within {self._timeout_seconds:g} s")

    def _refusal(self) -> UnavailableError:
        return UnavailableError(f"the database cannot be used now: {self.lacking}")

    def _abandon(self, query: asyncio.Task[list[Row]]) -> None:
        query.cancel()
        self._abandoned.add(query)
        query.add_done_callback(self._buried)

    def _buried(self, query: asyncio.Task[list[Row]]) -> None:
        self._abandoned.discard(query)
        if not query.cancelled() and query.exception() is not None:
            _log.debug("abandoned query ended", extra={"error": repr(query.exception())})

    async def _query(
        self, statement: LiteralString | bytes | Composed, parameters: Parameters | None, binary: bool
    ) -> list[Row]:
        with self._translated():
            async with self._pool.connection() as connection:
                try:
                    return await _read(connection, statement, parameters, binary)
                except psycopg.OperationalError as error:
                    if not connection.closed:
                        raise
                    ended = error
            # It ended after the pool looked at it. Reading twice harms nobody.
            await self._pool.check()
            try:
                async with self._pool.connection(RECONNECT_SECONDS) as connection:
                    return await _read(connection, statement, parameters, binary)
            except PoolTimeout:
                raise ended from None

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """The driver's errors about the database itself, as ours."""
        try:
            yield
        except psycopg.errors.QueryCanceled as error:
            raise QueryTimeoutError(
                f"the query takes longer than {self._timeout_seconds:g} s: ask for less time, a coarser granularity, "
                "or single workers"
            ) from error
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
            raise UnavailableError("the database lacks our tables: run fleetpulse migrate") from error
        except (PoolTimeout, PoolClosed, TooManyRequests) as error:
            raise UnavailableError("all database connections are busy") from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise UnavailableError(f"the connection to the database failed ({type(error).__name__})") from error

    async def _configure(self, connection: AsyncConnection[Row]) -> None:
        milliseconds = str(round(self._timeout_seconds * 1000))
        await connection.execute(
            "SELECT set_config('statement_timeout', %s, false), set_config('TimeZone', 'UTC', false),"
            " set_config('default_transaction_read_only', 'on', false)",
            (milliseconds,),
        )


async def _read(
    connection: AsyncConnection[Row],
    statement: LiteralString | bytes | Composed,
    parameters: Parameters | None,
    binary: bool,
) -> list[Row]:
    cursor = await connection.execute(statement, parameters, binary=binary)
    return await cursor.fetchall()


async def _check(connection: AsyncConnection[Row]) -> None:
    """Raises OperationalError for a connection that has ended. A server that ends one says so before it is asked
    anything, so those that are silent are spared a question."""
    idle = select.poll()
    idle.register(connection.fileno(), select.POLLIN)
    if idle.poll(0):
        await AsyncConnectionPool.check_connection(connection)
