"""Rollups that the collectors keep on plain PostgreSQL."""

import asyncio
import random
import threading
import time
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from collector.partitions import maintain
from collector.rollups import FINE, roll_up
from fleetpulse.database.connect import connect
from fleetpulse.stream.dictionary import GPU, TABLES

WRITERS = 3
BATCHES = 25


async def test_writers_and_two_rollup_loops_at_once_lose_nothing(
    database_url, database_settings, workload, insert, differences
):
    minute = datetime.now(UTC).replace(second=0, microsecond=0)
    written = {table.name: [] for table in TABLES}
    guard = threading.Lock()

    def write(number: int) -> None:
        chance = random.Random(f"{workload.seed} {number}")
        with psycopg.connect(database_url, autocommit=True) as connection:
            for batch in range(BATCHES):
                table = chance.choice(TABLES)
                burst = minute - timedelta(minutes=chance.randint(0, 25)) + timedelta(microseconds=1 + number)
                rows = workload.samples(table, [burst + timedelta(microseconds=10 * batch)], 3)
                with connection.transaction():
                    insert(connection, table.name, rows)
                    time.sleep(chance.random() / 100)  # marks and rows that nobody else can see yet
                with guard:
                    written[table.name] += rows

    done = asyncio.Event()

    async def keep_rolling_up() -> int:
        rounds = 0
        async with await connect(database_settings) as connection:
            while not done.is_set():
                await roll_up(connection)
                rounds += 1
        return rounds

    loops = [asyncio.create_task(keep_rolling_up()) for _ in range(2)]
    await asyncio.gather(*(asyncio.to_thread(write, number) for number in range(WRITERS)))
    done.set()
    assert min(await asyncio.gather(*loops)) > 1
    async with await connect(database_settings) as connection:
        report = await roll_up(connection)
        assert not report.busy
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert differences(connection, workload, written) == []
        assert connection.execute("SELECT count(*) FROM rollup_dirty").fetchone() == (0,)


async def test_rows_that_are_committed_while_their_bucket_is_made_are_in_it_after_the_next_pass(
    database_url, database_settings, insert
):
    minute = datetime.now(UTC).replace(second=0, microsecond=0)
    rows = [
        {"time": minute + timedelta(seconds=second), "worker_key": 1, "gpu_key": 1, "power_watts": 1.0}
        for second in range(3)
    ]
    async with await connect(database_settings) as connection:
        with psycopg.connect(database_url, autocommit=True) as writer:
            insert(writer, "gpu_samples", rows[:1])
            await roll_up(connection)
            insert(writer, "gpu_samples", rows[1:2])
            with psycopg.connect(database_url) as holder, writer.transaction():
                insert(writer, "gpu_samples", rows[2:])
                holder.execute("SELECT FROM gpu_samples_1m FOR UPDATE")
                rolling_up = asyncio.create_task(roll_up(connection, FINE))
                await until_it_waits_for_a_lock(holder, connection.info.backend_pid)
        await rolling_up
        await roll_up(connection)
        assert await rows_of(connection, "gpu_samples_1m", "sample_count, power_watts_sum") == [(3, 3.0)]


async def until_it_waits_for_a_lock(observer: psycopg.Connection, pid: int) -> None:
    for _ in range(1000):
        query = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s"
        if observer.execute(query, (pid,)).fetchone() == ("Lock",):
            return
        observer.execute("SELECT pg_stat_clear_snapshot()")
        await asyncio.sleep(0.01)
    raise AssertionError(f"{pid} waits for no lock")


async def test_a_long_backlog_is_worked_off_in_one_call(database_url, database_settings, workload, insert, differences):
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    rows = workload.samples(GPU, [midnight - timedelta(minutes=7 * number) for number in range(100)], 4)
    with psycopg.connect(database_url, autocommit=True) as connection:
        insert(connection, "gpu_samples", rows)
    async with await connect(database_settings) as connection:
        report = await roll_up(connection)
    assert report.buckets > 100
    with psycopg.connect(database_url, autocommit=True) as connection:
        written = {table.name: [] for table in TABLES} | {"gpu_samples": rows}
        assert differences(connection, workload, written) == []


async def test_hours_and_days_stay_marked_when_only_minutes_are_asked_for(
    database_url, database_settings, workload, insert
):
    with psycopg.connect(database_url, autocommit=True) as plain:
        insert(plain, "gpu_samples", workload.samples(GPU, [datetime.now(UTC) - timedelta(hours=1)], 5))
    async with await connect(database_settings) as connection:
        await roll_up(connection, FINE)
        assert await count(connection, "gpu_samples_1m") > 0
        assert await count(connection, "gpu_samples_1h") == 0
        await roll_up(connection)
        assert await count(connection, "gpu_samples_1h") > 0
        assert await count(connection, "gpu_samples_1d") > 0


async def test_a_rollup_whose_samples_have_expired_is_never_made_again(
    database_url, database_settings, workload, insert
):
    now = datetime.now(UTC)
    old = (now - timedelta(days=10)).replace(hour=12)
    with psycopg.connect(database_url, autocommit=True) as plain:
        insert(plain, "gpu_samples", workload.samples(GPU, [old], 9))
    async with await connect(database_settings) as connection:
        await roll_up(connection)
        before = [await rows_of(connection, f"gpu_samples{suffix}") for suffix in ("_1m", "_1h", "_1d")]
        shorter = database_settings.model_copy(update={"retention_raw_days": 5.0})
        assert (await maintain(connection, shorter, now)).dropped > 0
        assert await count(connection, "gpu_samples") == 0
        # The retention is made longer again, and a late row comes for a minute whose other rows are gone.
        await maintain(connection, database_settings, now)
    with psycopg.connect(database_url, autocommit=True) as plain:
        insert(plain, "gpu_samples", workload.samples(GPU, [old], 1))
    async with await connect(database_settings) as connection:
        assert await count(connection, "gpu_samples") == 1
        await roll_up(connection)
        after = [await rows_of(connection, f"gpu_samples{suffix}") for suffix in ("_1m", "_1h", "_1d")]
    assert before == after
    assert all(before)


async def test_a_collector_that_finds_another_at_it_leaves_the_marks(database_url, database_settings, workload, insert):
    with psycopg.connect(database_url, autocommit=True) as plain:
        insert(plain, "gpu_samples", workload.samples(GPU, [datetime.now(UTC)], 2))
        with plain.transaction():
            # Whatever number the collectors agree on, it is the only advisory lock that a pass takes.
            plain.execute("SELECT pg_advisory_xact_lock(%s)", (int.from_bytes(b"fprollup"),))
            async with await connect(database_settings) as connection:
                report = await roll_up(connection)
                assert report.busy
                assert report.rows == 0
        assert plain.execute("SELECT count(*) > 0 FROM rollup_dirty").fetchone() == (True,)


async def test_rolling_up_refuses_a_snapshot_that_is_older_than_the_marks(database_settings):
    async with await connect(database_settings) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        with pytest.raises(psycopg.errors.RaiseException, match="READ COMMITTED"):
            async with connection.transaction():
                await connection.execute("SELECT roll_up_buckets('gpu_samples', ARRAY[now()])")


async def count(connection, relation: str) -> int:
    return (await (await connection.execute(f"SELECT count(*) FROM {relation}")).fetchone())[0]


async def rows_of(connection, relation: str, columns: str = "*") -> list[tuple[object, ...]]:
    return await (await connection.execute(f"SELECT {columns} FROM {relation} ORDER BY gpu_key, bucket")).fetchall()
