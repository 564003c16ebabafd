"""Plain PostgreSQL: partitions made ahead, and dropped when all their rows have expired."""

from dataclasses import dataclass
from datetime import datetime

import psycopg

from fleetpulse.database.connect import Connection
from fleetpulse.database.partitions import GRACE, STEPS, make_partitions
from fleetpulse.database.retention import retention
from fleetpulse.settings import DatabaseSettings
from fleetpulse.telemetry import logger

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Maintenance:
    """What a pass did. ``deferred`` are expired partitions that somebody was reading."""

    made: int
    dropped: int
    deferred: int


async def maintain(connection: Connection, settings: DatabaseSettings, now: datetime) -> Maintenance:
    """Make partitions ahead and drop expired ones, on an autocommit connection. Raises psycopg.Error."""
    made = await make_partitions(connection, settings, now)
    dropped = deferred = 0
    for relation, kept in retention(settings).items():
        if relation not in STEPS:
            continue
        cursor = await connection.execute(
            "SELECT partition, ends_at FROM partitions_of(%s::regclass) WHERE ends_at <= %s ORDER BY ends_at",
            (relation, now - kept - GRACE),
        )
        for partition, ends_at in await cursor.fetchall():
            if await _drop(connection, relation, partition, ends_at):
                dropped += 1
            else:
                deferred += 1
    if made or dropped or deferred:
        _log.info("partitions maintained", extra={"made": made, "dropped": dropped, "deferred": deferred})
    return Maintenance(made, dropped, deferred)


async def _drop(connection: Connection, relation: str, partition: str, ends_at: datetime) -> bool:
    """False when a reader holds the relation: waiting for it would make all writers wait behind us."""
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '500ms'")
            await connection.execute("CALL drop_partition(%s, %s, %s)", (relation, partition, ends_at))
    except psycopg.errors.LockNotAvailable:
        return False
    return True
