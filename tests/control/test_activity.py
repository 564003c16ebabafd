from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from control.api.families import FAMILIES
from control.api.parameters import LEVELS
from fleetpulse.database.relations import expected

Connection = psycopg.AsyncConnection[Any]
WIDTHS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}


async def add_worker(sql: Connection, worker_id: str = "w1", instance_id: str | None = None) -> int:
    statement = "INSERT INTO workers (worker_id, instance_id, host_name) VALUES (%s, %s, 'host') RETURNING worker_key"
    return await one(sql, statement, worker_id, instance_id or worker_id)


async def add_gpu(sql: Connection, worker: int, index: int = 0) -> int:
    statement = "INSERT INTO gpus (worker_key, hw_id, gpu_index, model) VALUES (%s, %s, %s, 'H100') RETURNING gpu_key"
    return await one(sql, statement, worker, f"GPU-{index}", index)


async def add_engine(sql: Connection, worker: int) -> int:
    statement = "INSERT INTO engines (worker_key, model_id, engine_index) VALUES (%s, 'm', '0') RETURNING engine_key"
    return await one(sql, statement, worker)


async def one(sql: Connection, statement: str, *values: Any) -> int:
    row = await (await sql.execute(statement, values)).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return int(row[0])


async def put(sql: Connection, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        marks = ", ".join(["%s"] * len(row))
        await sql.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values()))  # type: ignore[arg-type]


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


def buckets(granularity: str, count: int) -> list[datetime]:
    """Starts of the last full buckets, oldest first."""
    width = WIDTHS[granularity]
    epoch = datetime(2000, 1, 1, tzinfo=UTC)
    current = epoch + (datetime.now(UTC) - epoch) // width * width
    return [current - width * number for number in range(count, 0, -1)]


def counter(
    column: str, first: float, last: float, low: float | None = None, high: float | None = None, n: int = 12
) -> dict[str, float]:
    low, high = first if low is None else low, last if high is None else high
    return {
        f"{column}_count": n,
        f"{column}_min": low,
        f"{column}_max": high,
        f"{column}_first": first,
        f"{column}_last": last,
    }


@pytest.fixture
async def gpu(sql: Connection) -> dict[str, int]:
    worker = await add_worker(sql)
    return {"worker_key": worker, "gpu_key": await add_gpu(sql, worker)}


async def test_raw_gpu_rows_are_the_readings_with_identity_and_nulls_where_nothing_was_read(
    sql: Connection, api: Any, gpu: dict[str, int]
) -> None:
    await put(
        sql,
        "gpu_samples",
        [
            {"time": ago(10), "utilization_ratio": 0.25, "memory_used_bytes": 20e9, "memory_total_bytes": 80e9} | gpu,
            {"time": ago(5), "utilization_ratio": 0.0} | gpu,
        ],
    )
    answer = await api.get("/gpu/activity")
    assert (answer["window_s"], answer["granularity"], answer["truncated"]) == (300, "second", False)
    first, second = answer["rows"]
    assert {name: first[name] for name in ("worker_id", "instance_id", "gpu_id", "gpu_index", "gpu_model")} == {
        "worker_id": "w1",
        "instance_id": "w1",
        "gpu_id": "GPU-0",
        "gpu_index": 0,
        "gpu_model": "H100",
    }
    assert (first["utilization_ratio"], first["memory_utilization_ratio"]) == (0.25, 0.25)
    assert (second["utilization_ratio"], second["memory_utilization_ratio"]) == (0, None)
    assert second["temperature_celsius"] is None
    assert datetime.fromisoformat(answer["from"]) < datetime.fromisoformat(first["time"])
    assert datetime.fromisoformat(first["time"]) < datetime.fromisoformat(second["time"])


@pytest.mark.parametrize("granularity", list(LEVELS))
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
async def test_a_row_has_exactly_the_documented_fields(
    sql: Connection, api: Any, family: Any, granularity: str
) -> None:
    worker = await add_worker(sql)
    keys = {"worker_key": worker}
    keys |= {
        "gpu": {"gpu_key": await add_gpu(sql, worker)},
        "engine": {"engine_key": await add_engine(sql, worker)},
    }.get(family.name, {})
    if granularity == "second":
        await put(sql, family.table.name, [{"time": ago(5)} | keys])
    else:
        table = f"{family.table.name}_{LEVELS[granularity]}"  # type: ignore[index]
        await put(sql, table, [{"bucket": buckets(granularity, 1)[0], "sample_count": 1} | keys])
    rows = (await api.get(f"/{family.name}/activity", granularity=granularity, window_s=200_000))["rows"]
    measured = [field for field, _, _ in family.fields(coarse=granularity != "second")]
    assert list(rows[0]) == [*family.identity(None), *measured]
    assert len(set(rows[0])) == len(rows[0])
    assert all(rows[0][field] is None for field in measured)


@pytest.mark.parametrize("granularity", ["minute", "hour", "day"])
@pytest.mark.parametrize(
    ("family", "group"),
    [(family, group) for family in FAMILIES for group in family.groups() if group],
    ids=lambda each: getattr(each, "name", each),
)
async def test_a_groups_row_has_exactly_the_documented_fields(
    sql: Connection, api: Any, family: Any, group: str, granularity: str
) -> None:
    keys = {"worker_key": await add_worker(sql)} if group == "worker" else {}
    table = f"{family.name}_{group}_{LEVELS[granularity]}"  # type: ignore[index]
    row = {"bucket": buckets(granularity, 1)[0], "series_count": 2, "sample_count": 2} | keys
    await put(sql, table, [row])
    query = {"granularity": granularity, "window_s": 200_000, "group_by": group}
    rows = (await api.get(f"/{family.name}/activity", **query))["rows"]
    measured = [field for field, _, _ in family.measured(group, coarse=True)]
    assert list(rows[0]) == [*family.identity(group), *measured]
    assert rows[0]["series_count"] == 2
    assert all(rows[0][field] is None for field in measured)


async def test_a_groups_values_are_averages_over_its_series(sql: Connection, api: Any) -> None:
    first, second = await add_worker(sql, "a", "ia"), await add_worker(sql, "b", "ib")
    bucket = buckets("minute", 1)[0]
    row = {"bucket": bucket, "series_count": 2, "sample_count": 24}
    gauge = {"sum": 12.0, "count": 24, "min": 0.125, "max": 1.0}
    row |= {f"utilization_ratio_{part}": value for part, value in gauge.items()}
    # 2 GPUs of 300 W each, read every 5 s: eleven twelfths of the minute's increase are within the minute.
    row |= {"energy_joules_total_increase": 33_000.0, "energy_joules_total_count": 24, "energy_joules_total_series": 2}
    await put(sql, "gpu_worker_1m", [row | {"worker_key": key} for key in (first, second)])
    await put(sql, "gpu_fleet_1m", [row | {"series_count": 4}])
    fields = ("utilization_ratio", "utilization_ratio_min", "utilization_ratio_max", "average_power_watts")
    query = {"group_by": "worker", "granularity": "minute", "worker_id": "b", "fields": ",".join(fields)}
    shown = (await api.get("/gpu/activity", **query))["rows"]
    assert shown == [
        {"time": bucket.strftime("%Y-%m-%dT%H:%M:%SZ"), "worker_id": "b", "instance_id": "ib", "series_count": 2}
        | dict(zip(fields, (0.5, 0.125, 1, pytest.approx(300)), strict=True))
    ]
    shown = (await api.get("/gpu/activity", group_by="fleet", window_s=300))["rows"]
    assert (shown[0]["series_count"], shown[0]["average_power_watts"]) == (4, pytest.approx(300))


async def test_a_rate_of_the_minute_that_is_not_over_is_unknown_in_a_group(sql: Connection, api: Any) -> None:
    row = {"series_count": 1, "sample_count": 6, "energy_joules_total_increase": 500.0}
    row |= {"energy_joules_total_count": 6, "energy_joules_total_series": 1, "power_watts_sum": 6.0}
    current = buckets("minute", 1)[0] + timedelta(minutes=1)
    await put(sql, "gpu_fleet_1m", [row | {"power_watts_count": 6, "bucket": current}])
    shown = (await api.get("/gpu/activity", group_by="fleet"))["rows"]
    assert [(one["average_power_watts"], one["power_watts"]) for one in shown] == [(None, 1)]


@pytest.mark.parametrize("group", ["worker", "fleet"])
async def test_groups_are_answered_from_their_own_rollup_alone(database_url: str, serve: Any, group: str) -> None:
    table = f"gpu_{group}_1m"
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as sql:
        keys = {"worker_key": await add_worker(sql)} if group == "worker" else {}
        await put(sql, table, [{"bucket": buckets("minute", 1)[0], "series_count": 1, "sample_count": 1} | keys])
        for other in expected("postgres"):
            if other.startswith("gpu_") and other != table:
                await sql.execute(f"DROP TABLE {other} CASCADE")  # type: ignore[arg-type]
    api = await serve(database_url)
    assert len((await api.get("/gpu/activity", group_by=group, granularity="minute"))["rows"]) == 1


async def test_only_the_fields_that_are_asked_for_are_answered(sql: Connection, api: Any, gpu: dict[str, int]) -> None:
    await put(sql, "gpu_samples", [{"time": ago(5), "utilization_ratio": 0.5, "power_watts": 100.0} | gpu])
    await put(sql, "gpu_samples_1m", [{"bucket": buckets("minute", 1)[0], "sample_count": 1} | gpu])
    for granularity in ("second", "minute"):
        query = {"fields": "power_watts,average_power_watts", "granularity": granularity}
        (row,) = (await api.get("/gpu/activity", **query))["rows"]
        identity = {"time", "worker_id", "instance_id", "gpu_id", "gpu_index", "gpu_model"}
        assert set(row) - identity == {"power_watts", "average_power_watts"}


@pytest.mark.parametrize(
    ("path", "query", "field", "detail"),
    [
        ("/gpu/activity", {"group_by": "engine"}, "group_by", "'gpu', 'worker' or 'fleet'"),
        ("/system/activity", {"group_by": "system"}, "group_by", "'worker' or 'fleet'"),
        ("/gpu/activity", {"group_by": "worker", "granularity": "second"}, "granularity", "has no seconds"),
        ("/engine/activity", {"group_by": "fleet", "granularity": "second"}, "granularity", "has no seconds"),
        ("/gpu/activity", {"group_by": "fleet", "worker_id": "w1"}, "worker_id", "all workers"),
        ("/system/activity", {"group_by": "fleet", "instance_id": "w1"}, "instance_id", "all workers"),
        ("/gpu/activity", {"fields": "power_wats"}, "fields", "unknown: power_wats; known: utilization_ratio"),
        ("/gpu/activity", {"fields": "power_watts_max"}, "fields", "unknown: power_watts_max"),
    ],
)
async def test_a_group_or_field_that_there_is_not_is_refused_by_name(
    api: Any, path: str, query: Any, field: str, detail: str
) -> None:
    problem = await api.get(path, 422, **query)
    assert [error["field"] for error in problem["errors"]] == [field]
    assert detail in problem["errors"][0]["detail"]


async def test_hosts_by_worker_are_what_they_are_without_grouping(sql: Connection, api: Any) -> None:
    worker = await add_worker(sql)
    await put(sql, "system_samples", [{"time": ago(5), "worker_key": worker, "load_average_1m": 1.0}])
    assert len((await api.get("/system/activity", group_by="worker", granularity="second"))["rows"]) == 1


async def test_counters_are_rates_since_the_reading_before_and_unknown_without_one(
    sql: Connection, api: Any, gpu: dict[str, int]
) -> None:
    start = ago(30)
    readings = [(0, 1000.0), (5, 2500.0), (10, 2500.0), (20, 8500.0)]
    rows = [{"time": start + timedelta(seconds=at), "energy_joules_total": joules} | gpu for at, joules in readings]
    await put(sql, "gpu_samples", rows)
    shown = (await api.get("/gpu/activity"))["rows"]
    assert [row["average_power_watts"] for row in shown] == [None, pytest.approx(300), 0, pytest.approx(600)]
    assert "energy_joules_total" not in shown[0]


async def test_the_first_row_of_the_window_has_its_rate_from_the_row_before_the_window(
    sql: Connection, api: Any, gpu: dict[str, int]
) -> None:
    rows = [{"time": ago(at), "energy_joules_total": 1e6 - 100 * at} | gpu for at in (70, 65, 58)]
    await put(sql, "gpu_samples", rows)
    shown = (await api.get("/gpu/activity", window_s=60))["rows"]
    assert [row["average_power_watts"] for row in shown] == [pytest.approx(100, rel=1e-3)]


async def test_a_counter_that_went_down_counts_from_zero(sql: Connection, api: Any, gpu: dict[str, int]) -> None:
    start = ago(30)
    readings = [(0, 9e9), (5, 1000.0), (10, 2000.0)]
    rows = [{"time": start + timedelta(seconds=at), "energy_joules_total": joules} | gpu for at, joules in readings]
    await put(sql, "gpu_samples", rows)
    shown = (await api.get("/gpu/activity"))["rows"]
    assert [row["average_power_watts"] for row in shown] == [None, pytest.approx(200), pytest.approx(200)]


async def test_a_long_gap_has_no_rate_and_no_rows(sql: Connection, api: Any, gpu: dict[str, int]) -> None:
    rows = [{"time": ago(at), "energy_joules_total": 1e6 - at} | gpu for at in (1000, 995, 100, 95)]
    await put(sql, "gpu_samples", rows)
    shown = (await api.get("/gpu/activity", window_s=2000))["rows"]
    assert [row["average_power_watts"] for row in shown] == [
        None,
        pytest.approx(1, rel=1e-3),
        None,
        pytest.approx(1, rel=1e-3),
    ]


async def test_rows_that_hold_a_part_of_the_columns_each_still_have_rates(sql: Connection, api: Any) -> None:
    worker, start = await add_worker(sql), ago(60)
    rows: list[dict[str, Any]] = []
    for number in range(3):
        at = start + timedelta(seconds=10 * number)
        rows.append({"time": at, "worker_key": worker, "network_received_bytes_total": 1000.0 * number})
        rows.append({"time": at + timedelta(milliseconds=3), "worker_key": worker, "memory_used_bytes": 5.0})
    await put(sql, "system_samples", rows)
    shown = (await api.get("/system/activity"))["rows"]
    rates = [row["network_received_bytes_per_second"] for row in shown]
    assert rates == [None, None, pytest.approx(100), None, pytest.approx(100), None]


async def test_cpu_use_comes_from_busy_and_idle_time_where_the_ratio_is_missing(sql: Connection, api: Any) -> None:
    worker, start = await add_worker(sql), ago(60)
    for at, busy, idle, ratio in ((0, 100.0, 100.0, None), (5, 115.0, 105.0, None), (10, 120.0, 120.0, 0.5)):
        row = {"cpu_busy_seconds_total": busy, "cpu_idle_seconds_total": idle, "cpu_utilization_ratio": ratio}
        await put(sql, "system_samples", [{"time": start + timedelta(seconds=at), "worker_key": worker} | row])
    shown = (await api.get("/system/activity"))["rows"]
    assert [row["cpu_utilization_ratio"] for row in shown] == [None, 0.75, 0.5]


async def test_engine_counters_are_tokens_per_second_and_a_hit_ratio(sql: Connection, api: Any) -> None:
    worker = await add_worker(sql)
    keys, start = {"worker_key": worker, "engine_key": await add_engine(sql, worker)}, ago(60)
    for at, tokens, hits, queries in ((0, 0.0, 0.0, 0.0), (4, 400.0, 30.0, 40.0), (8, 400.0, 30.0, 40.0)):
        row = {
            "generation_tokens_total": tokens,
            "prefix_cache_hits_total": hits,
            "prefix_cache_queries_total": queries,
        }
        await put(sql, "engine_samples", [{"time": start + timedelta(seconds=at)} | keys | row])
    shown = (await api.get("/engine/activity"))["rows"]
    assert [row["generation_tokens_per_second"] for row in shown] == [None, pytest.approx(100), 0]
    assert [row["prefix_cache_hit_ratio"] for row in shown] == [None, 0.75, None]
    assert (shown[0]["model_id"], shown[0]["engine_index"]) == ("m", "0")


@pytest.mark.parametrize("granularity", ["minute", "hour", "day"])
async def test_coarse_rows_come_from_the_rollup_alone(database_url: str, serve: Any, granularity: str) -> None:
    gauge = {"sum": 6.0, "count": 12, "min": 0.25, "max": 1.0, "last": 0.75}
    table = f"gpu_samples_{LEVELS[granularity]}"  # type: ignore[index]
    row = {"bucket": buckets(granularity, 1)[0], "sample_count": 12}
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as sql:
        worker = await add_worker(sql)
        row |= {"worker_key": worker, "gpu_key": await add_gpu(sql, worker)}
        await put(sql, table, [row | {f"utilization_ratio_{part}": value for part, value in gauge.items()}])
        # With every other level gone, only a statement that reads this one has an answer.
        for other in ("gpu_samples", *(f"gpu_samples_{level}" for level in ("1m", "1h", "1d"))):
            if other != table:
                await sql.execute(f"DROP TABLE {other} CASCADE")  # type: ignore[arg-type]
    api = await serve(database_url)
    shown = (await api.get("/gpu/activity", granularity=granularity, window_s=200_000))["rows"]
    assert [
        [one["utilization_ratio"], *(one[f"utilization_ratio_{part}"] for part in ("min", "max", "last"))]
        for one in shown
    ] == [[0.5, 0.25, 1, 0.75]]
    assert datetime.fromisoformat(shown[0]["time"]) == row["bucket"]


async def minutes(sql: Connection, api: Any, gpu: dict[str, int], rows: Mapping[int, Mapping[str, float]]) -> list[Any]:
    """Average power of minutes, given by their number of ten, as the API shows it."""
    starts = buckets("minute", 10)
    for number, row in rows.items():
        await put(sql, "gpu_samples_1m", [{"bucket": starts[number], "sample_count": 12} | gpu | row])
    shown = await api.get("/gpu/activity", granularity="minute", window_s=3600)
    return [row["average_power_watts"] for row in shown["rows"]]


async def test_a_whole_buckets_rate_is_its_increase_over_its_width(
    sql: Connection, api: Any, gpu: dict[str, int]
) -> None:
    # 10 W; the first reading of a bucket is one step of 5 s after the last reading of the one before.
    rows = {n: counter("energy_joules_total", 600 * n, 600 * n + 550) for n in range(5)}
    shown = await minutes(sql, api, gpu, rows)
    assert shown == [pytest.approx(10)] * 5


async def test_a_partly_filled_bucket_is_not_taken_for_a_whole_one(
    sql: Connection, api: Any, gpu: dict[str, int]
) -> None:
    rows = {n: counter("energy_joules_total", 600 * n, 600 * n + 550) for n in range(4)}
    rows[4] = counter("energy_joules_total", 2400, 2500, n=3)
    rows[6] = counter("energy_joules_total", 3600, 4150)
    shown = await minutes(sql, api, gpu, rows)
    assert shown == [pytest.approx(10)] * 6


async def test_a_reset_within_or_between_buckets_counts_from_zero(
    sql: Connection, api: Any, gpu: dict[str, int]
) -> None:
    rows = {
        0: counter("energy_joules_total", 0, 550),
        1: counter("energy_joules_total", 600, 250, low=50, high=850),  # up by 250 to 850, then anew to 250
        2: counter("energy_joules_total", 50, 600),  # reset at the border: anew to 600
        3: counter("energy_joules_total", 650, 900, low=10, high=900),  # at least the 900 counted since the reset
        4: counter("energy_joules_total", 950, 1500),
    }
    shown = await minutes(sql, api, gpu, rows)
    assert shown[1:] == [
        pytest.approx((50 + 250 + 250) / 60),
        pytest.approx(600 / 60),
        pytest.approx((50 + 900) / 60),
        pytest.approx(600 / 60),
    ]


async def test_a_lone_buckets_rate_is_unknown(sql: Connection, api: Any, gpu: dict[str, int]) -> None:
    assert await minutes(sql, api, gpu, {5: counter("energy_joules_total", 0, 550)}) == [None]


async def test_buckets_without_readings_of_a_column_are_null_and_missing_buckets_have_no_row(
    sql: Connection, api: Any, gpu: dict[str, int]
) -> None:
    empty = {"energy_joules_total_count": 0, "utilization_ratio_count": 0}
    rows = {n: counter("energy_joules_total", 600 * n, 600 * n + 550) for n in (0, 1, 2, 4, 5, 6)}
    shown = await minutes(sql, api, gpu, rows | {3: empty})
    assert shown[3] is None
    assert len(shown) == 7
    assert [value for value in shown if value is not None] == [pytest.approx(10)] * 6


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["a", "b", "c"]),
        ({"instance_id": "ia"}, ["a"]),
        ({"instance_id": "ia,ib"}, ["a", "b"]),
        ([("instance_id", "ia"), ("instance_id", "ic,ib")], ["a", "b", "c"]),
        ({"worker_id": "b"}, ["b"]),
        ({"worker_id": "b", "instance_id": "ia"}, []),
        ({"instance_id": "nobody"}, []),
    ],
)
async def test_rows_can_be_asked_for_by_instance_and_worker(
    sql: Connection, api: Any, query: Any, expected: list[str]
) -> None:
    for number, name in enumerate("abc"):
        worker = await add_worker(sql, name, f"i{name}")
        await put(sql, "system_samples", [{"time": ago(10 - number), "worker_key": worker, "load_average_1m": 1.0}])
    async with api.session.get(f"{api.url}/system/activity", params=query, headers=api.admin) as answer:
        assert [row["worker_id"] for row in (await answer.json())["rows"]] == expected


async def test_of_too_many_rows_the_newest_are_shown_and_the_answer_says_so(
    sql: Connection, serve: Any, shared_database_url: str, gpu: dict[str, int]
) -> None:
    rows = [{"time": ago(100 - n), "energy_joules_total": 10.0 * n} | gpu for n in range(10)]
    await put(sql, "gpu_samples", rows)
    shown = await (await serve(shared_database_url, rows_per_response=4)).get("/gpu/activity")
    assert shown["truncated"] is True
    times = [datetime.fromisoformat(row["time"]) for row in shown["rows"]]
    assert times == [row["time"] for row in rows[-4:]]
    assert [row["average_power_watts"] for row in shown["rows"]] == [pytest.approx(10, rel=0.01)] * 4
    assert not (await (await serve(shared_database_url, rows_per_response=10)).get("/gpu/activity"))["truncated"]


@pytest.mark.parametrize(
    ("window", "granularity"),
    [(1, "second"), (3600, "second"), (3601, "minute"), (86_400, "minute"), (86_401, "hour"), (90 * 86_400 + 1, "day")],
)
async def test_the_granularity_follows_the_window_where_none_is_asked_for(
    api: Any, window: int, granularity: str
) -> None:
    assert (await api.get("/system/activity", window_s=window))["granularity"] == granularity


async def test_a_query_that_takes_too_long_is_ended_and_says_what_to_do(
    sql: Connection, serve: Any, shared_database_url: str
) -> None:
    slow = await serve(shared_database_url, query_timeout_seconds=0.2)
    async with sql.transaction():
        await sql.execute("LOCK TABLE gpu_samples IN ACCESS EXCLUSIVE MODE")
        problem = await slow.get("/gpu/activity", status=503)
    assert "longer than 0.2 s" in problem["detail"]
    await slow.get("/gpu/activity")
