import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
import pytest

from control.api.families import FAMILIES, GPU_ACTIVITY, SYSTEM_ACTIVITY
from control.api.parameters import LEVELS, ActivityParameters, Granularity
from control.api.resources.activity import query_parameters, rows_of, statement

MINUTE = timedelta(minutes=1)


async def ask(
    sql: psycopg.AsyncConnection[Any], family: Any, granularity: Granularity, now: datetime, group: Any = None
) -> list[Any]:
    asked = ActivityParameters(1800, granularity, None, None, group)
    cursor = await sql.execute(statement(family, asked), query_parameters(asked, now, 1000), binary=True)
    (columns,) = await cursor.fetchall()
    return [msgspec.structs.asdict(row) for row in rows_of(family, asked, columns, 1000)]


async def test_rates_from_real_rollups_agree_with_the_samples_in_both_profiles(any_database_url: str) -> None:
    """200 W, sampled every 5 s over ten minutes, with a driver reset after 5.5 minutes and a CPU at 3/4."""
    start = datetime.now(UTC).replace(second=0, microsecond=0) - 11 * MINUTE
    # One connection and no COPY: the WASM server takes no more.
    async with await psycopg.AsyncConnection.connect(any_database_url, autocommit=True, prepare_threshold=None) as sql:
        await sql.execute("SET TIME ZONE 'UTC'")
        worker = await key(sql, "INSERT INTO workers (worker_id, instance_id) VALUES ('w', 'w') RETURNING worker_key")
        gpu = await key(sql, f"INSERT INTO gpus (worker_key, hw_id) VALUES ({worker}, 'g') RETURNING gpu_key")
        await sql.execute(
            f"""INSERT INTO gpu_samples (time, worker_key, gpu_key, utilization_ratio, energy_joules_total)
                SELECT %s + n * interval '5 s', {worker}, {gpu}, (n %% 12) / 11.0,
                    CASE WHEN n < 66 THEN 50000 + 1000.0 * n ELSE 1000.0 * (n - 65) END
                FROM generate_series(0, 119) AS n""",
            (start,),
        )
        await sql.execute(
            f"""INSERT INTO system_samples (time, worker_key, cpu_busy_seconds_total, cpu_idle_seconds_total)
                SELECT %s + n * interval '5 s', {worker}, 15.0 * n, 5.0 * n FROM generate_series(0, 119) AS n""",
            (start,),
        )
        await roll_up(sql, start)
        now = datetime.now(UTC)
        raw = await ask(sql, GPU_ACTIVITY, "second", now)
        assert [row["average_power_watts"] for row in raw] == [None] + [pytest.approx(200)] * 119
        coarse = await ask(sql, GPU_ACTIVITY, "minute", now)
        assert [row["time"] for row in coarse] == [start + n * MINUTE for n in range(10)]
        assert [row["average_power_watts"] for row in coarse] == [pytest.approx(200)] * 10
        assert [row["utilization_ratio"] for row in coarse] == [pytest.approx(0.5)] * 10
        assert [(row["utilization_ratio_min"], row["utilization_ratio_max"]) for row in coarse] == [(0, 1)] * 10
        cpu = await ask(sql, SYSTEM_ACTIVITY, "minute", now)
        assert [row["cpu_utilization_ratio"] for row in cpu] == [pytest.approx(0.75)] * 10
        for group in ("worker", "fleet"):
            shown = await ask(sql, GPU_ACTIVITY, "minute", now, group)
            assert [row["series_count"] for row in shown] == [1] * 10
            assert [row["average_power_watts"] for row in shown] == [pytest.approx(200)] * 10
            assert [row["utilization_ratio"] for row in shown] == [pytest.approx(0.5)] * 10
        fleet = await ask(sql, SYSTEM_ACTIVITY, "minute", now, "fleet")
        assert [row["cpu_utilization_ratio"] for row in fleet] == [pytest.approx(0.75)] * 10
        for family in FAMILIES:
            for granularity, each in itertools.product(LEVELS, family.groups()):
                if each is None or granularity != "second":
                    await ask(sql, family, granularity, now, each)


async def key(sql: psycopg.AsyncConnection[Any], statement: str) -> int:
    row = await (await sql.execute(statement.encode())).fetchone()
    assert row is not None
    return int(row[0])


async def roll_up(sql: psycopg.AsyncConnection[Any], start: datetime) -> None:
    """Plain PostgreSQL's rollups are made on demand; TimescaleDB's show what is not materialised too."""
    plain = await (await sql.execute("SELECT to_regproc('roll_up_buckets') IS NOT NULL")).fetchone()
    if plain == (True,):
        for table in ("gpu_samples", "system_samples"):
            await sql.execute("SELECT roll_up_buckets(%s, %s)", (table, [start + n * MINUTE for n in range(10)]))
