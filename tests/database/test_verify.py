"""Verification names each thing that is missing."""

from datetime import UTC, datetime, timedelta

import pytest

from fleetpulse.database.connect import DatabaseError, connect
from fleetpulse.database.verify import verify
from fleetpulse.settings import DatabaseSettings


async def verify_after(url: str, profile, statements: list[str], days: float = 0) -> None:
    settings = DatabaseSettings(url=url)
    async with await connect(settings) as connection:
        for statement in statements:
            await connection.execute(statement)
        await verify(connection, profile, settings, datetime.now(UTC) + timedelta(days=days))


async def test_a_prepared_database_passes(database_url):
    await verify_after(database_url, "postgres", [])


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("DROP TABLE system_samples_1h", "relation system_samples_1h"),
        ("DROP TABLE producer_positions", "relation producer_positions"),
        ("ALTER TABLE gpu_samples DROP COLUMN power_watts", "column power_watts of gpu_samples"),
        ("DROP TABLE engine_fleet_1h", "relation engine_fleet_1h"),
        ("ALTER TABLE system_fleet_1m DROP COLUMN series_count", "column series_count of system_fleet_1m"),
        ("ALTER TABLE gpu_samples_1d DROP COLUMN energy_joules_total_first", "energy_joules_total_first of gpu_sam"),
        ("DROP FUNCTION roll_up_buckets", "function roll_up_buckets"),
    ],
)
async def test_what_was_dropped_is_named(database_url, statement, named):
    with pytest.raises(DatabaseError, match=named) as caught:
        await verify_after(database_url, "postgres", [statement])
    assert "\n" not in str(caught.value)


async def test_partitions_that_nobody_made_are_named(database_url):
    day = datetime.now(UTC) + timedelta(days=30)
    with pytest.raises(DatabaseError, match=f"partition heartbeats_p{day:%Y%m%d}"):
        await verify_after(database_url, "postgres", [], days=30)


async def test_everything_missing_is_named_at_once(database_url):
    with pytest.raises(DatabaseError, match=r"relation gpus_?.*relation engine_samples_1m.*function bucket_of"):
        await verify_after(
            database_url,
            "postgres",
            ["DROP TABLE gpus", "DROP TABLE engine_samples_1m", "DROP FUNCTION bucket_of CASCADE"],
        )


@pytest.mark.timescale
async def test_a_timescale_database_passes_until_a_view_job_or_setting_is_gone(timescale_url):
    await verify_after(timescale_url, "timescale", [])
    with pytest.raises(DatabaseError, match="job policy_retention of gpu_samples"):
        await verify_after(timescale_url, "timescale", ["SELECT remove_retention_policy('gpu_samples')"])
    with pytest.raises(DatabaseError, match="the newest rows in engine_samples_1h"):
        await verify_after(
            timescale_url,
            "timescale",
            ["ALTER MATERIALIZED VIEW engine_samples_1h SET (timescaledb.materialized_only = true)"],
        )
    with pytest.raises(DatabaseError, match=r"relation gpu_fleet_1d; .*job policy_refresh_continuous_aggregate"):
        await verify_after(timescale_url, "timescale", ["DROP MATERIALIZED VIEW gpu_fleet_1d"])
