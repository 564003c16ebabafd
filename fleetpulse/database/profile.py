"""Which of two database profiles a server offers: ``timescale`` or ``postgres``."""

from typing import Any, Final, Literal, LiteralString, cast

import psycopg

from fleetpulse.database.connect import Connection, DatabaseError, connect, one_line
from fleetpulse.settings import DatabaseSettings
from fleetpulse.telemetry import logger

_log = logger(__name__)

Profile = Literal["timescale", "postgres"]

OLDEST_POSTGRES: Final = 15
OLDEST_TIMESCALE: Final = (2, 20)


async def ensure_extension(settings: DatabaseSettings) -> None:
    """Create the timescaledb extension where the server has it, we may, and the profile is not set to ``postgres``.

    Uses a connection of its own, because a server that has not preloaded the library ends the connection that asks.
    """
    if settings.profile == "postgres":
        return
    async with await connect(settings) as connection:
        found = await _one(
            connection,
            "SELECT default_version, installed_version, to_regclass('database_profile') IS NOT NULL"
            " FROM pg_available_extensions WHERE name = 'timescaledb'",
        )
        if found is None or found[1] is not None or found[2]:
            return
        try:
            await connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        except psycopg.Error as error:
            _log.warning("timescaledb cannot be created", extra={"version": found[0], "reason": one_line(error)})


async def detect(connection: Connection, settings: DatabaseSettings) -> Profile:
    """The profile of this database: the one it was migrated for, else the one set, else what the server offers.

    Raises DatabaseError when the server is too old or does not offer what the database needs.
    """
    if connection.info.server_version < OLDEST_POSTGRES * 10_000:
        raise DatabaseError(
            f"PostgreSQL {connection.info.server_version // 10_000} is too old: use {OLDEST_POSTGRES} or later"
        )
    lacking = await _lacks_timescale(connection)
    profile = await recorded(connection) or _wanted(settings) or ("postgres" if lacking else "timescale")
    wanted = _wanted(settings)
    if wanted is not None and wanted != profile:
        raise DatabaseError(
            f"this database was made for the profile {profile}: set FLEETPULSE_DATABASE_PROFILE to auto or {profile},"
            " or use an empty database"
        )
    if profile == "timescale" and lacking:
        raise DatabaseError(f"this database needs TimescaleDB, but {lacking}")
    return profile


async def recorded(connection: Connection) -> Profile | None:
    """The profile the database was migrated for, None when it never was."""
    if (await _one(connection, "SELECT to_regclass('database_profile') IS NOT NULL")) == (False,):
        return None
    row = await _one(connection, "SELECT name FROM database_profile")
    return None if row is None else cast("Profile", row[0])


def _wanted(settings: DatabaseSettings) -> Profile | None:
    return None if settings.profile == "auto" else settings.profile


async def _lacks_timescale(connection: Connection) -> str | None:
    """What the timescale profile would miss, in words; None when nothing."""
    row = await _one(
        connection,
        "SELECT extversion, current_setting('timescaledb.license', true) FROM pg_extension"
        " WHERE extname = 'timescaledb'",
    )
    if row is None:
        return "the extension timescaledb is not there: install and preload it, and create it in this database"
    version, license_name = row
    if license_name != "timescale":
        return f"its licence setting is {license_name}, which has no continuous aggregates: use the community edition"
    if tuple(int(part) for part in version.split("-")[0].split(".")[:2]) < OLDEST_TIMESCALE:
        return f"{version} is too old: update to {'.'.join(map(str, OLDEST_TIMESCALE))} or later"
    return None


async def _one(connection: Connection, query: LiteralString) -> tuple[Any, ...] | None:
    cursor = await connection.execute(query)
    return await cursor.fetchone()
