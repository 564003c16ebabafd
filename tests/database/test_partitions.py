"""Partitions on plain PostgreSQL: there before their rows, gone after."""

import asyncio
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from collector.partitions import maintain
from fleetpulse.database.connect import connect
from fleetpulse.database.partitions import STEPS

INSERT = "INSERT INTO gpu_samples (time, worker_key, gpu_key) VALUES (%s, 1, 1)"


async def partitions(connection, relation: str) -> list[str]:
    cursor = await connection.execute("SELECT partition FROM partitions_of(%s::regclass) ORDER BY ends_at", (relation,))
    return [name for (name,) in await cursor.fetchall()]


async def test_rows_of_the_whole_retention_and_of_the_next_days_have_a_place(database_settings):
    now = datetime.now(UTC)
    oldest = now - timedelta(days=database_settings.retention_raw_days)
    async with await connect(database_settings) as connection:
        for moment in (oldest, now - timedelta(days=5), now, now + timedelta(days=2)):
            await connection.execute(INSERT, (moment,))


async def test_a_row_older_than_the_retention_is_refused(database_settings):
    async with await connect(database_settings) as connection:
        with pytest.raises(psycopg.errors.CheckViolation, match="no partition"):
            await connection.execute(INSERT, (datetime.now(UTC) - timedelta(days=17),))


async def test_as_time_goes_by_partitions_are_made_ahead_and_expired_ones_dropped(database_settings):
    now = datetime.now(UTC)
    async with await connect(database_settings) as connection:
        before = {relation: await partitions(connection, relation) for relation in STEPS}
        assert await maintain(connection, database_settings, now) == (
            await maintain(connection, database_settings, now)
        )
        later = now + timedelta(days=100)
        report = await maintain(connection, database_settings, later)
        assert report.deferred == 0
        after = {relation: await partitions(connection, relation) for relation in STEPS}
        for relation in ("gpu_samples", "heartbeats", "metric_points", "gpu_samples_1m"):
            assert not set(before[relation]) & set(after[relation]), relation
            assert f"{relation}_p{later + timedelta(days=2):%Y%m%d}" in after[relation]
        # Hours are kept for two years.
        assert set(before["gpu_samples_1h"]) <= set(after["gpu_samples_1h"])
        assert f"gpu_samples_1h_p{later:%Y%m}" in after["gpu_samples_1h"]


async def test_hour_rollups_expire_after_their_own_retention(database_settings):
    now = datetime.now(UTC)
    async with await connect(database_settings) as connection:
        before = await partitions(connection, "gpu_samples_1h")
        await maintain(connection, database_settings, now + timedelta(days=database_settings.retention_hour_days + 62))
        assert not set(before) & set(await partitions(connection, "gpu_samples_1h"))


async def test_a_partition_that_is_being_read_is_left_for_the_next_pass(database_settings):
    now = datetime.now(UTC)
    async with await connect(database_settings) as reader, await connect(database_settings) as connection:
        async with reader.transaction():
            await reader.execute("SELECT count(*) FROM heartbeats")
            report = await maintain(connection, database_settings, now + timedelta(days=2))
            assert report.deferred > 0
        report = await maintain(connection, database_settings, now + timedelta(days=2))
        assert (report.deferred, report.dropped > 0) == (0, True)


async def test_many_collectors_may_maintain_at_once(database_settings):
    later = datetime.now(UTC) + timedelta(days=6)

    async def one():
        async with await connect(database_settings) as connection:
            return await maintain(connection, database_settings, later)

    reports = await asyncio.gather(*(one() for _ in range(5)))
    assert sum(report.made for report in reports) > 0
    async with await connect(database_settings) as connection:
        assert (await maintain(connection, database_settings, later)).made == 0
