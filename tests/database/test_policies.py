"""TimescaleDB's background jobs do what the settings say."""

from datetime import UTC, datetime, timedelta

import pytest

from fleetpulse.database.connect import connect
from fleetpulse.database.policies import LEVELS, apply_policies, late_windows
from fleetpulse.database.relations import ROLLED_UP
from fleetpulse.database.retention import check
from fleetpulse.settings import DatabaseSettings, SettingsError

pytestmark = pytest.mark.timescale

RAW_ROW = "INSERT INTO gpu_samples (time, worker_key, gpu_key, power_watts) VALUES (%s, 1, 1, 100)"


async def jobs(connection) -> dict[tuple[str, str | None], tuple[int, dict[str, str]]]:
    cursor = await connection.execute(
        "SELECT proc_name, hypertable_name, job_id, config FROM timescaledb_information.jobs WHERE job_id >= 1000"
    )
    return {(procedure, relation): (job, config) for procedure, relation, job, config in await cursor.fetchall()}


async def run_job(connection, procedure: str, relation: str | None) -> None:
    job, _ = (await jobs(connection))[procedure, relation]
    await connection.execute("CALL run_job(%s)", (job,))


async def rollup(connection, suffix: str) -> list[tuple[object, ...]]:
    cursor = await connection.execute(f"SELECT sample_count, power_watts_sum FROM gpu_samples{suffix} ORDER BY bucket")
    return await cursor.fetchall()


async def test_jobs_change_when_the_settings_do_and_only_then(timescale_url):
    settings = DatabaseSettings(url=timescale_url)
    async with await connect(settings) as connection:
        before = await jobs(connection)
        assert before["policy_retention", "gpu_samples"][1]["drop_after"] == "14 days"
        assert before["policy_retention", "gpu_samples_1m"][1]["drop_after"] == "90 days"
        assert before["policy_retention", "gpu_samples_1h"][1]["drop_after"] == "730 days"
        assert ("policy_retention", "gpu_samples_1d") not in before
        assert before["policy_compression", "gpu_samples"][1]["compress_after"] == "2 days"
        for level in LEVELS:
            assert ("policy_refresh_continuous_aggregate", f"engine_samples{level.suffix}") in before

        assert await apply_policies(connection, settings) == 0
        assert await jobs(connection) == before

        changed = settings.model_copy(update={"retention_raw_days": 20.5, "compress_after_days": 0.0})
        assert await apply_policies(connection, changed) > 0
        after = await jobs(connection)
        assert ("policy_compression", "gpu_samples") not in after
        assert after["policy_retention", "gpu_samples"][1]["drop_after"] == "20 days 12:00:00"
        assert after["policy_retention", "gpu_samples_1m"] == before["policy_retention", "gpu_samples_1m"]
        assert await apply_policies(connection, changed) == 0


async def test_expired_samples_go_and_their_rollups_stay_even_when_retention_is_made_longer(timescale_url):
    settings = DatabaseSettings(url=timescale_url)
    now = datetime.now(UTC)
    async with await connect(settings) as connection:
        for age in (timedelta(days=12), timedelta(days=12, seconds=1), timedelta(days=9), timedelta(days=1)):
            await connection.execute(RAW_ROW, (now.replace(hour=12) - age,))
        await run_job(connection, "refresh_late_rollups", None)
        for suffix in ("_1m", "_1h", "_1d"):
            await run_job(connection, "policy_refresh_continuous_aggregate", f"gpu_samples{suffix}")
        before = {suffix: await rollup(connection, suffix) for suffix in ("_1m", "_1h", "_1d")}
        assert before["_1d"] == [(2, 200.0), (1, 100.0), (1, 100.0)]

        await apply_policies(connection, settings.model_copy(update={"retention_raw_days": 5.0}))
        await run_job(connection, "policy_retention", "gpu_samples")
        cursor = await connection.execute("SELECT count(*) FROM gpu_samples")
        assert await cursor.fetchone() == (1,)
        # The retention is made longer again, and a late row comes for a day whose other rows are gone.
        await apply_policies(connection, settings)
        await connection.execute(RAW_ROW, (now.replace(hour=12) - timedelta(days=12, minutes=5),))
        await run_job(connection, "refresh_late_rollups", None)
        assert {suffix: await rollup(connection, suffix) for suffix in ("_1m", "_1h", "_1d")} == before


async def test_old_chunks_go_to_the_columnstore_and_still_take_late_rows(timescale_url):
    settings = DatabaseSettings(url=timescale_url)
    now = datetime.now(UTC)
    async with await connect(settings) as connection:
        for minute in range(3):
            await connection.execute(RAW_ROW, (now - timedelta(days=5, minutes=minute),))
        await run_job(connection, "policy_compression", "gpu_samples")
        cursor = await connection.execute(
            "SELECT count(*) FROM timescaledb_information.chunks"
            " WHERE hypertable_name = 'gpu_samples' AND is_compressed"
        )
        assert (await cursor.fetchone())[0] > 0
        await connection.execute(RAW_ROW, (now - timedelta(days=5, minutes=1, seconds=5),))
        cursor = await connection.execute("SELECT count(*), sum(power_watts) FROM gpu_samples")
        assert await cursor.fetchone() == (4, 400.0)


@pytest.mark.parametrize("raw_days", [1, 2, 14, 90])
def test_no_refresh_reaches_rows_that_may_be_dropped(raw_days):
    settings = DatabaseSettings(retention_raw_days=raw_days, retention_minute_days=90, retention_hour_days=730)
    kept = {"samples": raw_days, "1m": 90, "1h": 730, "1d": 36_500}
    for level in LEVELS:
        assert level.start_offset < timedelta(days=kept[level.finer.removeprefix("_") or "samples"])
    windows = list(late_windows(settings))
    assert len(windows) == len(ROLLED_UP) * len(LEVELS)
    for window in windows:
        assert int(window["start_offset"].split()[0]) < kept[window["source"].split("_")[-1]] * 86_400


def test_a_rollup_kept_for_less_than_its_source_is_a_settings_error():
    with pytest.raises(SettingsError, match="FLEETPULSE_DATABASE_RETENTION_MINUTE_DAYS: 7 is less than"):
        check(DatabaseSettings(retention_raw_days=14, retention_minute_days=7))
