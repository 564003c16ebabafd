"""What the database needs done for it: old bookkeeping deleted, and on plain PostgreSQL rollups of changed buckets and
partitions made ahead and dropped, which TimescaleDB does by its own policies; of these it is watched that they succeed.

Any number of collectors may try; the database lets one at a time.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Final

import psycopg

from collector.metrics import CollectorMetrics
from collector.partitions import maintain
from collector.rollups import FINE, roll_up
from collector.usage_ledger import reckon, show
from collector.usage_sums import settle
from fleetpulse.database import DatabaseError, Profile, connect
from fleetpulse.database.connect import Connection
from fleetpulse.settings import CollectorSettings, DatabaseSettings
from fleetpulse.telemetry import logger

_log = logger(__name__)

COARSE_INTERVALS: Final = 6
DAY_SECONDS: Final = 86_400.0

# Policies that refresh the finest rollups run once a minute; job_stats tells what became of each job.
_POLICIES: Final = """
SELECT
    count(*) FILTER (WHERE s.last_run_status = 'Failed'),
    extract(epoch FROM min(s.last_successful_finish) FILTER (
        WHERE j.proc_name = 'policy_refresh_continuous_aggregate' AND j.schedule_interval = INTERVAL '1 minute'
        AND isfinite(s.last_successful_finish)
    ))::float8
FROM timescaledb_information.jobs AS j
JOIN timescaledb_information.job_stats AS s USING (job_id)
"""

Pass = Callable[[Connection], Awaitable[object]]


async def keep_up(
    settings: CollectorSettings, database: DatabaseSettings, profile: Profile, metrics: CollectorMetrics
) -> None:
    """Do what the profile needs, each at its interval, for ever."""

    async def old_books(connection: Connection) -> None:
        await delete_old_books(connection, database)

    async def partitions(connection: Connection) -> object:
        return await maintain(connection, database, datetime.now(UTC))

    async def ledger(connection: Connection) -> None:
        show(await reckon(connection, settings, database, datetime.now(UTC)), metrics)

    works: list[tuple[str, float, Pass]] = [
        ("books", settings.maintenance_interval_seconds, old_books),
        ("usage", settings.usage_interval_seconds, settle),
        ("ledger", settings.ledger_interval_seconds, ledger),
    ]
    if profile == "timescale":
        works.append(("policies", settings.rollup_interval_seconds, partial(watch_policies, metrics=metrics)))
    else:
        # Hours and days are made of minutes, and cost more the later in the hour: they can wait a little.
        works.append(("rollup_minutes", settings.rollup_interval_seconds, partial(roll_up, levels=FINE)))
        works.append(("rollup", settings.rollup_interval_seconds * COARSE_INTERVALS, roll_up))
        works.append(("partitions", settings.maintenance_interval_seconds, partitions))
    async with asyncio.TaskGroup() as tasks:
        for name, interval_seconds, work in works:
            tasks.create_task(_repeat(name, interval_seconds, work, database, metrics), name=f"collector-{name}")


async def delete_old_books(connection: Connection, database: DatabaseSettings) -> None:
    """Forget producers whose messages would be too old to be accepted, and what was noticed longer ago than the minute
    rollups are kept."""
    await connection.execute(
        "DELETE FROM producer_positions WHERE updated_at < now() - make_interval(secs => %s)",
        (database.retention_raw_days * DAY_SECONDS + DAY_SECONDS,),
    )
    await connection.execute(
        "DELETE FROM data_quality WHERE hour < now() - make_interval(secs => %s)",
        (database.retention_minute_days * DAY_SECONDS,),
    )
    await connection.execute(
        "DELETE FROM ingest_gaps WHERE noticed_at < now() - make_interval(secs => %s)",
        (database.retention_minute_days * DAY_SECONDS,),
    )


async def watch_policies(connection: Connection, metrics: CollectorMetrics) -> None:
    """Show what TimescaleDB's own jobs came to, as if the rollups were ours."""
    failing, refreshed_unix = (await (await connection.execute(_POLICIES)).fetchall())[0]
    metrics.policies_failing.set(failing)
    if refreshed_unix is not None:
        metrics.upkeep_success.labels("rollup_minutes").set(refreshed_unix)


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
