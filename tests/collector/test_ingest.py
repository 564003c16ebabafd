"""A running collector between a real broker and a real database."""

import asyncio
import math
import tempfile
import time
from collections import Counter
from pathlib import Path

import psycopg
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from fleetpulse.database import prepare
from fleetpulse.local import otlp_messages as otlp
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.settings import DatabaseSettings
from fleetpulse.stream import heartbeat as heartbeats
from fleetpulse.stream.heartbeat import Engine, Heartbeat, Load
from fleetpulse.stream.topics import HEARTBEATS, USAGE

DAY_NANOSECONDS = 86_400 * 10**9


def one_gauge(name: str, value: float, *, worker: str = "w", time_unix_nano: int | None = None, **attributes) -> bytes:
    request = ExportMetricsServiceRequest()
    scope = otlp.agent_resource(request, worker, "boot")
    otlp.gauge(scope, name, value, time_unix_nano or time.time_ns(), attributes)
    return request.SerializeToString()


def heartbeat(sequence: int, *, worker: str = "w", sent_unix_nano: int | None = None, **changes) -> Heartbeat:
    return Heartbeat(
        worker_id=worker,
        instance_id=worker,
        boot_id="boot",
        sequence=sequence,
        sent_unix_nano=sent_unix_nano or time.time_ns(),
        interval_seconds=1.0,
        status="ready",
        agent_version="0.1",
        **changes,
    )


def quality(fleet) -> dict[tuple[str, str], int]:
    return {
        (kind, reason): count for kind, reason, count in fleet.query("SELECT kind, reason, count FROM data_quality")
    }


async def test_a_message_becomes_rows_with_the_values_that_were_sent(fleet):
    now = time.time_ns()
    request = ExportMetricsServiceRequest()
    scope = otlp.agent_resource(request, "box-1", "boot", "instance-1")
    otlp.gauge(scope, "system.memory.limit", 2**35, now)
    for gpu, used in enumerate((0.25, 0.75)):
        attributes = {"hw.id": f"GPU-{gpu}", "hw.model": "H100", "fleetpulse.gpu.index": str(gpu)}
        otlp.gauge(scope, "hw.gpu.utilization", used, now, attributes | {"hw.gpu.task": "general"})
    otlp.gauge(scope, "room.temperature", 21.5, now, {"room": "7"})
    async with fleet.collector():
        await fleet.send(request.SerializeToString())
        await fleet.rows("gpu_samples", 2)
    assert fleet.query(
        "SELECT worker_id, instance_id, hw_id, gpu_index, model, utilization_ratio, temperature_celsius"
        " FROM gpu_samples JOIN gpus USING (gpu_key) JOIN workers ON workers.worker_key = gpu_samples.worker_key"
        " ORDER BY gpu_index"
    ) == [
        ("box-1", "instance-1", "GPU-0", 0, "H100", 0.25, None),
        ("box-1", "instance-1", "GPU-1", 1, "H100", 0.75, None),
    ]
    assert fleet.query("SELECT memory_total_bytes, cpu_utilization_ratio FROM system_samples") == [(2.0**35, None)]
    assert fleet.query("SELECT name, attributes, value FROM metric_points JOIN metric_series USING (series_key)") == [
        ("room.temperature", {"room": "7"}, 21.5)
    ]
    ((stored,),) = fleet.query("SELECT (extract(epoch FROM time) * 1000000)::bigint FROM system_samples")
    assert stored == now // 1000


async def test_a_heartbeat_becomes_a_row(fleet):
    engine = Engine(state="ready", requests_waiting=3, requests_running=5, kv_cache_usage_ratio=0.5, step_count=99)
    beat = heartbeat(7, engine=engine, load=Load(cpu_utilization_ratio=0.25))
    async with fleet.collector():
        await fleet.send(heartbeats.encode(beat), topic=HEARTBEATS.name)
        await fleet.rows("heartbeats", 1)
    assert fleet.query(
        "SELECT sequence, s.name, e.name, requests_waiting, requests_running, kv_cache_usage_ratio, step_count,"
        " cpu_utilization_ratio, gpu_utilization_ratio FROM heartbeats h JOIN heartbeat_statuses s ON s.code = h.status"
        " JOIN engine_states e ON e.code = h.engine_state"
    ) == [(7, "ready", "ready", 3.0, 5.0, 0.5, 99.0, 0.25, None)]


def spoilt(old: bytes, new: bytes) -> bytes:
    good = heartbeats.encode(heartbeat(1))
    assert old in good
    return good.replace(old, new)


BAD_HEARTBEATS = {
    "not json": (b"\xff\x00junk", "malformed_heartbeat"),
    "not an object": (b"[1]", "malformed_heartbeat"),
    "wrong type": (
        spoilt(b'"sequence":1', b'"sequence":"one"'),
        "malformed_heartbeat",
    ),
    "negative": (spoilt(b'"sequence":1', b'"sequence":-1'), "malformed_heartbeat"),
    "not a number": (
        spoilt(b'"interval_seconds":1.0', b'"interval_seconds":NaN'),
        "malformed_heartbeat",
    ),
    "no identity": (spoilt(b'"worker_id":"w",', b""), "malformed_heartbeat"),
    "nul": (spoilt(b'"0.1"', b'"0\\u0000"'), "malformed_heartbeat"),
    "unknown version": (
        spoilt(b'"schema_version":1', b'"schema_version":99'),
        "unknown_schema_version",
    ),
    "huge": (b" " * 70_000, "malformed_heartbeat"),
    "empty": (b"", "malformed_heartbeat"),
}


async def test_bad_heartbeats_are_buried_with_their_reason_and_their_neighbours_land(fleet):
    async with fleet.collector():
        for sequence, (bad, _) in enumerate(BAD_HEARTBEATS.values(), start=1):
            await fleet.send(bad, heartbeats.encode(heartbeat(sequence)), topic=HEARTBEATS.name)
        await fleet.rows("heartbeats", len(BAD_HEARTBEATS))
        letters = await fleet.dead_letters(len(BAD_HEARTBEATS))
    found = {letter["value"]: letter["reason"] for letter in letters}
    assert found == {bad.hex(): reason for bad, reason in BAD_HEARTBEATS.values()}
    assert {letter["topic"] for letter in letters} == {HEARTBEATS.name}


async def test_unknown_fields_of_a_newer_agent_are_ignored(fleet):
    newer = spoilt(b'{"worker_id"', b'{"mood":{"x":[1]},"worker_id"')
    async with fleet.collector():
        await fleet.send(newer, topic=HEARTBEATS.name)
        await fleet.rows("heartbeats", 1)


async def test_bad_metrics_are_buried_with_their_reason_and_their_neighbours_land(fleet):
    nobody = ExportMetricsServiceRequest()
    otlp.gauge(otlp.resource(nobody, {"service.name": "x"}).scope_metrics.add(), "a", 1.0, time.time_ns())
    good = one_gauge("system.uptime", 5.0)
    bad = {
        b"random \x00\xff bytes": "malformed_otlp",
        good[: len(good) // 2]: "malformed_otlp",
        b"": "malformed_otlp",
        nobody.SerializeToString(): "missing_identity",
        good + b"\x0a" + b"\xff" * 5: "malformed_otlp",
        bytes(2_000): "oversize",
    }
    async with fleet.collector(message_bytes=1_500):
        for message in bad:
            await fleet.send(message, one_gauge("system.uptime", 5.0))
        await fleet.rows("system_samples", len(bad))
        letters = await fleet.dead_letters(len(bad))
    assert {letter["value"]: letter["reason"] for letter in letters} == {k.hex(): reason for k, reason in bad.items()}


async def test_impossible_values_are_counted_by_reason_and_never_stored(fleet, caplog):
    now = time.time_ns()
    gpu = {"hw.id": "GPU-0"}
    messages = [
        one_gauge("hw.gpu.utilization", 1.5, **gpu),
        one_gauge("hw.gpu.utilization", -3.0, **gpu),
        one_gauge("hw.temperature", 900.0, **gpu),
        one_gauge("hw.power", math.nan, **gpu),
        one_gauge("hw.power", math.inf, **gpu),
        one_gauge("hw.power", 300.0, time_unix_nano=now + DAY_NANOSECONDS, **gpu),
        one_gauge("hw.power", 300.0, time_unix_nano=now - 30 * DAY_NANOSECONDS, **gpu),
        one_gauge("any.series", math.nan),
        one_gauge("hw.power", 301.0, **gpu),
    ]
    async with fleet.collector():
        await fleet.send(*messages)
        await fleet.until(
            lambda: fleet.query("SELECT 1 FROM gpu_samples WHERE power_watts = 301"), "the good one at the end"
        )
    assert fleet.query("SELECT utilization_ratio, temperature_celsius, power_watts FROM gpu_samples ORDER BY time") == [
        (1.0, None, None),
        (0.0, None, None),
        (None, None, 301.0),
    ]
    assert fleet.count("metric_points") == 0
    assert quality(fleet) == {
        ("clamped", "out_of_range"): 2,
        ("rejected", "out_of_range"): 1,
        ("rejected", "not_finite"): 3,
        ("rejected", "empty_row"): 3,
        ("rejected", "time_in_future"): 1,
        ("rejected", "time_too_old"): 1,
    }
    clamps = [record for record in caplog.records if record.message == "value clamped"]
    assert clamps
    assert {record.raw_value for record in clamps} <= {"1.5", "-3.0"}
    assert {record.worker_id for record in clamps} == {"w"}


async def test_numbers_too_large_and_text_with_nul_are_no_trouble_for_the_database(fleet):
    now, largest = time.time_ns(), 2**63 - 1
    gpu = {"hw.gpu.task": "general", "hw.model": "H\x00100"}
    request = ExportMetricsServiceRequest()
    scope = otlp.agent_resource(request, "w", "boot")
    otlp.gauge(scope, "hw.gpu.utilization", 0.5, now, gpu | {"hw.id": "G\x00", "fleetpulse.gpu.index": "9" * 30})
    otlp.gauge(scope, "hw.gpu.utilization", 0.5, now, gpu | {"hw.id": "H", "fleetpulse.gpu.index": "-1"})
    otlp.gauge(scope, "a\x00b", 1.0, now, {"c\x00": "d\x00", "long": "x" * 10_000})
    otlp.gauge(scope, "no.time", 1.0, 0)
    otlp.gauge(scope, "far.time", 1.0, 2**64 - 1)
    scope.metrics.add(name="large").gauge.data_points.add(time_unix_nano=now, as_int=-(2**63))
    histogram = scope.metrics.add(name="histogram").histogram
    histogram.data_points.add(time_unix_nano=now, count=2**64 - 1, bucket_counts=[2**64 - 1, 0], explicit_bounds=[1])
    exports = scope.metrics.add(name="fleetpulse.agent.exports").sum
    exports.aggregation_temporality, exports.is_monotonic = 2, True
    exports.data_points.add(time_unix_nano=now, as_int=largest)
    async with fleet.collector() as (collector, _):
        await fleet.send(request.SerializeToString(), one_gauge("system.uptime", 1.0))
        await fleet.rows("system_samples", 1)
        value = collector.metrics.registry.get_sample_value
        assert value("fleetpulse_collector_write_failures_total", {"reason": "database"}) in (None, 0)
    assert fleet.query("SELECT hw_id, gpu_index, model FROM gpus ORDER BY hw_id") == [
        ("G", None, "H100"),
        ("H", None, "H100"),
    ]
    stored = fleet.query("SELECT name, attributes FROM metric_series WHERE name IN ('ab', 'large') ORDER BY 1")
    assert stored == [("ab", {"c": "d", "long": "x" * 400}), ("large", {})]
    assert fleet.count("metric_histograms") == 0
    assert {("rejected", "no_time"), ("rejected", "time_in_future"), ("rejected", "out_of_range")} <= set(
        quality(fleet)
    )


async def test_a_heartbeat_with_a_wild_clock_keeps_its_worker_alive_but_is_not_stored(fleet):
    ahead = heartbeat(1, sent_unix_nano=time.time_ns() + DAY_NANOSECONDS)
    async with fleet.collector() as (collector, _):
        await fleet.send(heartbeats.encode(ahead), topic=HEARTBEATS.name)
        await fleet.until(lambda: quality(fleet) == {("rejected", "time_in_future"): 1}, "the rejection")
        collector._staleness.check(time.monotonic())
        alive = collector.metrics.registry.get_sample_value("fleetpulse_collector_workers", {"state": "alive"})
    assert (alive, fleet.count("heartbeats")) == (1.0, 0)


async def test_a_heartbeat_older_than_heartbeats_are_kept_is_rejected_and_holds_nothing_up(fleet):
    old = heartbeat(1, sent_unix_nano=time.time_ns() - 5 * DAY_NANOSECONDS)
    async with fleet.collector():
        await fleet.send(heartbeats.encode(old), heartbeats.encode(heartbeat(2)), topic=HEARTBEATS.name)
        await fleet.rows("heartbeats", 1)
    assert quality(fleet) == {("rejected", "time_too_old"): 1}


async def test_endless_metric_names_of_one_worker_stop_at_the_cap(fleet):
    now = time.time_ns()

    def message(first: int, count: int, worker: str) -> bytes:
        request = ExportMetricsServiceRequest()
        scope = otlp.agent_resource(request, worker, "boot")
        for number in range(first, first + count):
            otlp.gauge(scope, f"metric.{number}", 1.0, now)
        return request.SerializeToString()

    async with fleet.collector(series_per_worker=50):
        for begun in range(0, 100_000, 20_000):
            await fleet.send(*(message(begun + start, 5_000, "greedy") for start in range(0, 20_000, 5_000)))
            dropped = begun + 19_950
            await fleet.until(
                lambda n=dropped: quality(fleet).get(("rejected", "series_cap")) == n, f"{dropped} dropped"
            )
        await fleet.send(message(0, 10, "modest"))
        await fleet.rows("metric_points", 60)
    assert fleet.query(
        "SELECT worker_id, count(*) FROM metric_series JOIN workers USING (worker_key) GROUP BY 1 ORDER BY 1"
    ) == [("greedy", 50), ("modest", 10)]
    # The cap outlives the process.
    async with fleet.collector(series_per_worker=50):
        await fleet.send(message(100_000, 10, "greedy"))
        await fleet.until(lambda: quality(fleet).get(("rejected", "series_cap")) == 99_960, "the cap after a restart")
    assert fleet.count("metric_series") == 60


async def test_what_a_producer_resends_is_stored_once(fleet):
    now = time.time_ns()
    messages = {sequence: otlp.agent_message("w", sequence, now + sequence, gpus=1) for sequence in (1, 2, 3, 4, 5)}
    beat = heartbeats.encode(heartbeat(1))
    async with fleet.collector():
        await fleet.send(*(messages[sequence] for sequence in (1, 2, 2, 5, 4, 1, 5)))
        await fleet.send(beat, beat, topic=HEARTBEATS.name)
        await fleet.rows("system_samples", 4)
    # The positions are in the database: another collector knows them, too.
    async with fleet.collector():
        await fleet.send(messages[5], messages[3])
        await fleet.rows("system_samples", 5)
    assert quality(fleet) == {
        ("duplicate", "metrics"): 4,
        ("duplicate", "heartbeat"): 1,
        ("out_of_order", "metrics"): 2,
        ("vanished", "metrics"): 2,
    }


async def test_names_that_were_forgotten_are_the_same_when_they_are_heard_again(fleet, monkeypatch):
    """A collector that runs for years must not remember every machine there ever was."""
    monkeypatch.setattr("collector.ingest.MOST_NAMES", 3)
    monkeypatch.setattr("collector.ingest.FORGET_SECONDS", 0.0)
    now = time.time_ns()
    async with fleet.collector(batch_rows=1) as (collector, _):
        for sequence in (1, 2, 3):
            for worker in ("a", "b", "c", "d"):
                message = otlp.agent_message(worker, sequence, now + sequence, gpus=2)
                await fleet.send(message, message)
        await fleet.rows("gpu_samples", 24)
        duplicates = "SELECT sum(count)::int FROM data_quality WHERE kind = 'duplicate'"
        await fleet.until(lambda: fleet.query(duplicates) == [(12,)], "the duplicates")
        await fleet.send(otlp.agent_message("e", 1, now, gpus=1))
        await fleet.rows("gpu_samples", 25)
        assert collector.ingest._directory.size + len(collector.ingest._positions) < 20
    assert (fleet.count("workers"), fleet.count("gpus")) == (5, 9)


async def test_late_samples_are_stored_and_counted(fleet):
    async with fleet.collector():
        await fleet.send(one_gauge("system.uptime", 5.0, time_unix_nano=time.time_ns() - 600 * 10**9))
        await fleet.rows("system_samples", 1)
    assert quality(fleet) == {("late", "late"): 1}


async def test_a_value_that_only_the_database_refuses_is_found_and_buried_alone(fleet):
    fleet_url = fleet.database.url.get_secret_value()
    with psycopg.connect(fleet_url, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN IF NEW.uptime_seconds = 666 THEN RAISE numeric_value_out_of_range; END IF; RETURN NEW; END $$"
        )
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON system_samples FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    uptimes = [1.0, 2.0, 666.0, 3.0, 4.0]
    async with fleet.collector():
        await fleet.send(*(one_gauge("system.uptime", uptime) for uptime in uptimes))
        await fleet.rows("system_samples", 4)
        (letter,) = await fleet.dead_letters(1)
    assert letter["reason"] == "unwritable"
    assert [row[0] for row in fleet.query("SELECT uptime_seconds FROM system_samples ORDER BY 1")] == [1, 2, 3, 4]


def held(collector) -> dict[str, int]:
    """How many partitions of each topic a collector has."""
    claims = collector.ingest._ownership.claims if collector.ingest else {}
    return Counter(partition.topic for partition in claims)


async def test_two_collectors_share_and_one_inherits_at_once_when_the_other_stops(fleet):
    async with fleet.collector() as (staying, _):
        async with fleet.collector() as (leaving, _):
            await fleet.until(
                lambda: held(staying) == held(leaving) == {"otlp_metrics": 2, HEARTBEATS.name: 2, USAGE.name: 2},
                "an equal share",
            )
        await fleet.until(lambda: sum(held(staying).values()) == 12, "the inheritance")
        await fleet.send(*(one_gauge("system.uptime", 1.0, worker=f"w{n}") for n in range(8)))
        await fleet.rows("system_samples", 8)


async def test_ingest_pauses_while_the_database_is_away_and_resumes_by_itself(make_fleet):
    # Not pytest's folder: under root the server runs as another account, which may not pass through it.
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder)) as postgres:
        settings = DatabaseSettings(url=postgres.url())
        await prepare(settings)
        fleet = make_fleet(settings)
        async with fleet.collector() as (collector, _):
            await fleet.send(one_gauge("system.uptime", 1.0))
            await fleet.rows("system_samples", 1)
            postgres.kill()
            await fleet.send(*(one_gauge("system.uptime", float(n)) for n in range(2, 500)))
            await fleet.until(lambda: "database" in (collector.missing().get("ingest") or ""), "unreadiness")
            await asyncio.to_thread(postgres.start)
            fleet.database = DatabaseSettings(url=postgres.url())
            await fleet.rows("system_samples", 499)
            await fleet.until(lambda: not collector.missing(), "readiness")


async def test_ingest_resumes_by_itself_after_the_broker_was_away(fleet, broker: EmbeddedBroker):
    async with fleet.collector() as (collector, _):
        await fleet.send(one_gauge("system.uptime", 1.0))
        await fleet.rows("system_samples", 1)
        broker.stop()
        await fleet.until(lambda: "stream" in (collector.missing().get("ingest") or ""), "unreadiness")
        await asyncio.to_thread(broker.start)
        await fleet.send(one_gauge("system.uptime", 2.0))
        await fleet.rows("system_samples", 2)
        await fleet.until(lambda: not collector.missing(), "readiness")


async def test_offsets_that_went_back_are_a_recorded_gap_and_nothing_new_is_skipped(fleet):
    """A topic made anew, or a broker that lost its end: the offset in the database is beyond the partition's."""
    async with fleet.collector():
        await fleet.send(*(otlp.agent_message("w", sequence, time.time_ns(), gpus=1) for sequence in range(1, 4)))
        await fleet.rows("system_samples", 3)
    with psycopg.connect(fleet.database.url.get_secret_value()) as connection:
        connection.execute("UPDATE ingest_offsets SET next_offset = 1000 WHERE next_offset = 3")
    async with fleet.collector():
        await fleet.send(otlp.agent_message("w", 4, time.time_ns(), gpus=1))
        await fleet.rows("system_samples", 4)
    assert fleet.query("SELECT from_offset, to_offset, reason FROM ingest_gaps") == [(1000, 0, "rewound")]


async def test_another_record_at_the_last_offset_means_that_the_log_was_rewritten(fleet):
    async with fleet.collector():
        await fleet.send(*(otlp.agent_message("w", sequence, time.time_ns(), gpus=1) for sequence in range(1, 4)))
        await fleet.rows("system_samples", 3)
    with psycopg.connect(fleet.database.url.get_secret_value()) as connection:
        connection.execute("UPDATE ingest_offsets SET topic_id = 'another' WHERE next_offset = 3")
    async with fleet.collector():
        await fleet.send(otlp.agent_message("w", 4, time.time_ns(), gpus=1))
        await fleet.rows("system_samples", 4)
    assert fleet.query("SELECT from_offset, to_offset, reason FROM ingest_gaps") == [(3, 0, "rewound")]
    assert quality(fleet) == {("duplicate", "metrics"): 3}


async def test_rollups_follow_the_samples(fleet):
    minute = time.time_ns() // (60 * 10**9) * 60 * 10**9 - 3600 * 10**9
    async with fleet.collector(rollup_interval_seconds=0.2):
        await fleet.send(
            *(one_gauge("system.cpu.load_average.1m", float(n), time_unix_nano=minute + n * 10**9) for n in range(3))
        )
        await fleet.rows("system_samples_1m", 1)
    assert fleet.query(
        "SELECT load_average_1m_sum, load_average_1m_count, load_average_1m_min, load_average_1m_max,"
        " load_average_1m_last FROM system_samples_1m"
    ) == [(3.0, 3, 0.0, 2.0, 2.0)]
