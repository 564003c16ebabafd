"""What plain PostgreSQL needs done for it: rollups of changed buckets, partitions made ahead and dropped.

TimescaleDB does both by its own policies. Any number of collectors may try; the database lets one at a time.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import psycopg

from collector.metrics import CollectorMetrics
from collector.partitions import maintain
from collector.rollups import roll_up
from fleetpulse.database import DatabaseError, connect
from fleetpulse.database.connect import Connection
from fleetpulse.settings import CollectorSettings, DatabaseSettings
from fleetpulse.telemetry import logger

_log = logger(__name__)

Pass = Callable[[Connection], Awaitable[object]]


async def keep_up(settings: CollectorSettings, database: DatabaseSettings, metrics: CollectorMetrics) -> None:
    """Roll up and maintain partitions at their intervals, for ever."""

    async def partitions(connection: Connection) -> object:
        return await maintain(connection, database, datetime.now(UTC))

    async with asyncio.TaskGroup() as tasks:
        for name, interval_seconds, work in (
            ("rollup", settings.rollup_interval_seconds, roll_up),
            ("partitions", settings.maintenance_interval_seconds, partitions),
        ):
            tasks.create_task(_repeat(name, interval_seconds, work, database, metrics), name=f"collector-{name}")


async def _repeat(
    name: str, interval_seconds: float, work: Pass, database: DatabaseSettings, metrics: CollectorMetrics
) -> None:
    failing = False
    async with AsyncExitStack() as open_connections:
        connection: Connection | None = None
        while True:
            started = time.monotonic()
            try:
                if connection is None or connection.closed:
                    connection = await connect(database, f"fleetpulse-collector-{name}")
                    await open_connections.enter_async_context(connection)
                await work(connection)
                metrics.upkeep_seconds.labels(name).observe(time.monotonic() - started)
                metrics.upkeep_success.labels(name).set(time.time())
                failing = False
            except (psycopg.Error, DatabaseError) as error:
                metrics.upkeep_failures.labels(name).inc()
                if not failing:
                    _log.warning("upkeep failed, trying again", extra={"work": name, "error": str(error).strip()})
                failing = True
                connection = None
                await open_connections.aclose()
            await asyncio.sleep(max(0.0, interval_seconds - (time.monotonic() - started)))
