"""Everything between an empty server and one that can be written to."""

from datetime import UTC, datetime

import psycopg

from fleetpulse.database import retention
from fleetpulse.database.connect import Connection, DatabaseError, connect_when_up, one_line
from fleetpulse.database.migrate import dbmate_url, migration_lock, run_dbmate, sql_folder
from fleetpulse.database.partitions import make_partitions
from fleetpulse.database.policies import apply_policies
from fleetpulse.database.profile import Profile, detect, ensure_extension
from fleetpulse.database.verify import verify
from fleetpulse.settings import DatabaseSettings, ServiceSettings, load
from fleetpulse.telemetry import logger

_log = logger(__name__)


async def prepare(settings: DatabaseSettings, service: ServiceSettings | None = None) -> Profile:
    """Wait for the server, migrate, set policies (or make partitions), and verify; any number of processes may do
    this at once.

    Raises DatabaseError or SettingsError, each one line.
    """
    retention.check(settings)
    sql = sql_folder(service or load(ServiceSettings))
    timeout_seconds = settings.migration_timeout_seconds
    try:
        async with (
            await connect_when_up(settings, timeout_seconds, "fleetpulse-prepare") as connection,
            migration_lock(connection, timeout_seconds),
        ):
            await ensure_extension(settings)
            profile = await detect(connection, settings)
            await run_dbmate(dbmate_url(connection, settings), sql, profile)
            await arrange(connection, profile, settings, datetime.now(UTC))
    except psycopg.Error as error:
        # Of a server that ends meanwhile, say: whoever waits for the database goes on waiting.
        raise DatabaseError(f"the database cannot be prepared: {one_line(error)}") from error
    _log.info("database ready", extra={"profile": profile})
    return profile


async def arrange(connection: Connection, profile: Profile, settings: DatabaseSettings, now: datetime) -> None:
    """What depends on the settings and on time, after the migrations; then verify. Raises DatabaseError."""
    if profile == "timescale":
        await apply_policies(connection, settings)
    else:
        await make_partitions(connection, settings, now)
    await verify(connection, profile, settings, now)
