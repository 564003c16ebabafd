"""The same samples give the same rollups in both profiles, and those are what the samples say."""

import asyncio
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from collector.rollups import roll_up
from fleetpulse.database.connect import connect
from fleetpulse.settings import DatabaseSettings
from fleetpulse.stream.dictionary import TABLES


def bring_up_to_date(url: str) -> None:
    """What the collector or TimescaleDB's background workers do from time to time."""
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT name FROM database_profile").fetchone() == ("timescale",):
            jobs = connection.execute(
                "SELECT job_id, hypertable_name FROM timescaledb_information.jobs"
                " WHERE proc_name IN ('refresh_late_rollups', 'policy_refresh_continuous_aggregate')"
                # The late-data job reaches further back than the policies, which then take the changes up a level.
                " ORDER BY array_position(ARRAY['1m', '1h', '1d'], right(hypertable_name, 2)) NULLS FIRST,"
                " array_position(ARRAY['samples', 'worker', 'fleet'], split_part(hypertable_name, '_', 2))"
            ).fetchall()
            # TimescaleDB 2.23 refreshes what hours and days are made into only in the run after the one that finds them
            # changed; hours that began with late rows, older than a policy looks, in the late-data job's next run.
            for job, _ in jobs + [each for each in jobs if not str(each[1]).endswith("_1m")]:
                connection.execute("CALL run_job(%s)", (job,))
            return
    asyncio.run(roll_up_all(url))


async def roll_up_all(url: str) -> None:
    async with await connect(DatabaseSettings(url=url)) as connection:
        await roll_up(connection)


# A native TimescaleDB that refreshes in batches goes through a month of minutes many times, thousands of transactions.
@pytest.mark.timeout(1_500)
def test_rollups_are_what_the_samples_say_before_and_after_late_rows(
    any_database_url, workload, insert, differences
) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    # Each burst ends before the hour does, and the late rows begin a new one.
    ages = ((12, 3), (9, 5), (6, 1), (3, 2), (1, 9), (0, 5))
    bursts = [hour - timedelta(days=days, hours=hours, minutes=4) for days, hours in ages]
    first = {table.name: workload.samples(table, bursts, 8) for table in TABLES}
    late_bursts = [burst + timedelta(minutes=2, milliseconds=1) for burst in bursts]
    late = {table.name: workload.samples(table, late_bursts, 4) for table in TABLES}
    everything = {name: rows + late[name] for name, rows in first.items()}

    with psycopg.connect(any_database_url, autocommit=True) as connection:
        for name, rows in first.items():
            insert(connection, name, rows)
    bring_up_to_date(any_database_url)
    with psycopg.connect(any_database_url, autocommit=True) as connection:
        connection.execute("SET timezone = UTC")
        assert differences(connection, workload, first) == []
        for name, rows in late.items():
            insert(connection, name, rows)
    bring_up_to_date(any_database_url)
    with psycopg.connect(any_database_url, autocommit=True) as connection:
        connection.execute("SET timezone = UTC")
        assert differences(connection, workload, everything) == []
