"""Connections, with the timeouts that keep a dead server from being waited for."""

import asyncio
import time
from typing import Any, Final, TypeAlias

import psycopg
from psycopg.conninfo import conninfo_to_dict

from fleetpulse.settings import DatabaseSettings

Connection: TypeAlias = psycopg.AsyncConnection[Any]

_RETRY_SECONDS: Final = 0.1
_OPTIONS: Final = "-c timezone=UTC"


class DatabaseError(Exception):
    """The database cannot be used; the message is one line: what, where, and what to do."""


async def connect(settings: DatabaseSettings, name: str = "fleetpulse") -> Connection:
    """A connection in autocommit mode; ``name`` is what the server shows it as. Raises DatabaseError."""
    url = settings.url.get_secret_value()
    try:
        where = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise DatabaseError(f"FLEETPULSE_DATABASE_URL is not a PostgreSQL connection URL: {one_line(error)}") from None
    try:
        return await psycopg.AsyncConnection.connect(
            url,
            autocommit=True,
            application_name=name,
            # libpq waits at least two seconds.
            connect_timeout=max(2, round(settings.connect_timeout_seconds)),
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            options=f"{where.get('options') or ''} {_OPTIONS}".strip(),
        )
    except psycopg.Error as error:
        place = f"{where.get('host', 'localhost')}:{where.get('port', '5432')}/{where.get('dbname', '')}"
        raise DatabaseError(
            f"cannot connect to the database at {place}: {one_line(error)}; check that it runs and"
            " FLEETPULSE_DATABASE_URL"
        ) from error


async def connect_when_up(settings: DatabaseSettings, timeout_seconds: float, name: str = "fleetpulse") -> Connection:
    """Like connect(), but waits for a server that is not up yet. Raises DatabaseError after the timeout."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            return await connect(settings, name)
        except DatabaseError as error:
            may_pass = isinstance(error.__cause__, psycopg.OperationalError) and not _is_refusal(error.__cause__)
            if not may_pass or time.monotonic() > deadline:
                raise
        await asyncio.sleep(_RETRY_SECONDS)


def one_line(error: BaseException) -> str:
    """The server's message without its hints and positions."""
    return " ".join(str(error).split("\n")[0].split()) or type(error).__name__


def _is_refusal(error: psycopg.OperationalError) -> bool:
    """The server is up and does not let us in. libpq gives no SQLSTATE for errors at connecting, only the text."""
    text = str(error)
    return "authentication failed" in text or "does not exist" in text or "no password supplied" in text
