"""Simulated agents send what real agents send, and every message is counted."""

import asyncio
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from agent.encoder import Encoder
from agent.exporter import Exporter
from agent.identity import identify
from agent.instruments import EXPORTS, GPU_ERRORS, GPU_UTILIZATION, Measurement
from fleetpulse.local.simulate import Plan, simulate
from fleetpulse.local.simulated_fleet import SimulatedFleet
from fleetpulse.local.stencil import Stencil
from fleetpulse.settings import AgentSettings, SettingsError, StreamSettings
from fleetpulse.stream import heartbeat
from fleetpulse.stream.topics import HEARTBEATS, METRICS


def quiet(_: str) -> None:
    """For progress lines."""


async def read(bootstrap: str, topic: str, starts: dict[TopicPartition, int]) -> list[tuple[bytes, bytes]]:
    """Keys and values written since ``starts``."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        partitions = [partition for partition in starts if partition.topic == topic]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        wanted = 0
        for partition in partitions:
            consumer.seek(partition, starts[partition])
            wanted += ends[partition] - starts[partition]
        found = [await asyncio.wait_for(consumer.getone(), 10) for _ in range(wanted)]
        return [(message.key, message.value) for message in found]
    finally:
        await consumer.stop()


async def ends(settings: StreamSettings) -> dict[TopicPartition, int]:
    """Where both topics end now."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap)
    await consumer.start()
    try:
        partitions = [
            TopicPartition(topic, number)
            for topic in (METRICS.name, HEARTBEATS.name)
            for number in range(settings.partitions)
        ]
        found: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
        return found
    finally:
        await consumer.stop()


def values(message: bytes, metric: str) -> list[float]:
    """A metric's values in a message."""
    (resource,) = ExportMetricsServiceRequest.FromString(message).resource_metrics
    (scope,) = resource.scope_metrics
    for found in scope.metrics:
        if found.name == metric:
            points = getattr(found, str(found.WhichOneof("data"))).data_points
            return [point.as_double if point.HasField("as_double") else float(point.as_int) for point in points]
    return []


def test_a_stencils_message_is_byte_for_byte_what_the_agent_encodes() -> None:
    identity = identify(AgentSettings(worker_id="sim-000000"))
    other = identify(AgentSettings(worker_id="sim-000001"))
    attributes = {"hw.id": "GPU-0000", "hw.type": "gpu"}
    layout = [Measurement(GPU_UTILIZATION, attributes, 0.5), Measurement(GPU_ERRORS, attributes, 3)]
    stencil = Stencil(identity, layout, [identity.worker_id, identity.boot_id, "GPU-0000"], 5)

    exporter = Exporter(other.resource_attributes(), other.agent_version, 5, 5)
    exporter.exported = 41
    attributes = {"hw.id": "GPU-1111", "hw.type": "gpu"}
    told = [Measurement(GPU_UTILIZATION, attributes, 0.25), Measurement(GPU_ERRORS, attributes, 7)]
    expected = Encoder().encode(exporter.build(told, 1_700_000_000_123_456_789))

    ids = np.frombuffer(f"{other.worker_id}{other.boot_id}GPU-1111".encode(), np.uint8)
    assert stencil.message(ids, 1_700_000_000_123_456_789, np.array([0.25, 7.0]), 42) == expected


def test_agents_differ_and_count_their_messages() -> None:
    fleet = SimulatedFleet(agents=3, gpus=2, heartbeat_interval_seconds=1)
    messages = [fleet.metrics(2), fleet.metrics(2), fleet.metrics(0)]
    assert [values(message, EXPORTS.name) for message in messages] == [[1.0], [2.0], [1.0]]
    resources = [ExportMetricsServiceRequest.FromString(m).resource_metrics[0].resource for m in messages]
    named = [{a.key: a.value.string_value for a in resource.attributes} for resource in resources]
    assert [one["fleetpulse.worker.id"] for one in named] == ["sim-000002", "sim-000002", "sim-000000"]
    assert named[0]["fleetpulse.boot.id"] == named[1]["fleetpulse.boot.id"] != named[2]["fleetpulse.boot.id"]
    assert len(values(messages[0], "hw.power")) == 2


def test_counters_never_fall_and_shares_stay_shares() -> None:
    fleet = SimulatedFleet(agents=1, gpus=1, heartbeat_interval_seconds=1)
    messages = [fleet.metrics(0) for _ in range(40)]
    for metric in ("hw.energy", "system.cpu.time", "fleetpulse.engine.generation_tokens"):
        series = [values(message, metric) for message in messages]
        for before, after in itertools.pairwise(series):
            assert all(earlier <= later for earlier, later in zip(before, after, strict=True))
    assert all(0 <= value <= 1 for message in messages for value in values(message, "hw.gpu.utilization"))


def test_heartbeats_are_numbered_and_can_be_read() -> None:
    fleet = SimulatedFleet(agents=2, gpus=2, heartbeat_interval_seconds=2)
    beats = [heartbeat.decode(fleet.heartbeat(1)) for _ in range(3)]
    assert [beat.sequence for beat in beats] == [1, 2, 3]
    assert {(beat.worker_id, beat.interval_seconds, beat.status) for beat in beats} == {("sim-000001", 2.0, "ready")}
    assert beats[0].load is not None
    assert beats[0].load.gpu_count == 2


def test_engines_do_steps_however_seldom_samples_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with work would else be told as stalled."""
    clock = itertools.count(1_000.0, 5.0)
    monkeypatch.setattr("fleetpulse.local.simulated_fleet.time.monotonic", lambda: next(clock))
    fleet = SimulatedFleet(agents=1, gpus=1, heartbeat_interval_seconds=5)
    engines = [heartbeat.decode(fleet.heartbeat(0)).engine for _ in range(3)]
    assert [engine.step_count for engine in engines if engine is not None] == [100, 200, 300]


async def test_every_message_arrives_and_is_counted(stream: StreamSettings, tmp_path: Path) -> None:
    starts = await ends(stream)
    plan = Plan.checked(20, interval_seconds=1, heartbeat_interval_seconds=0.5, duration_seconds=2, gpus=1)
    report = await simulate(plan, stream, asyncio.Event(), tmp_path / "report.json", quiet)
    assert (report.samples.failed, report.heartbeats.failed) == (0, 0)
    assert 30 <= report.samples.sent <= 41
    assert 70 <= report.heartbeats.sent <= 81

    samples = await read(stream.bootstrap, METRICS.name, starts)
    beats = [heartbeat.decode(value) for _, value in await read(stream.bootstrap, HEARTBEATS.name, starts)]
    assert len(samples) == report.samples.acked == report.samples.sent
    assert len(beats) == report.heartbeats.acked == report.heartbeats.sent
    assert {key for key, _ in samples} == {f"sim-{place:06d}".encode() for place in range(20)}
    for worker in {beat.worker_id for beat in beats}:
        sequences = [beat.sequence for beat in beats if beat.worker_id == worker]
        assert sequences == list(range(1, len(sequences) + 1))
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["samples"]["acked"] == report.samples.acked
    assert written["acked_per_second"] == pytest.approx(report.acked_per_second)


async def test_it_ends_when_stopped(stream: StreamSettings) -> None:
    stop = asyncio.Event()
    plan = Plan.checked(5, 0.2, 0.2, None, 0)
    run = asyncio.create_task(simulate(plan, stream, stop, tell=quiet))
    asyncio.get_running_loop().call_later(0.5, stop.set)
    report = await asyncio.wait_for(run, 20)
    assert report.samples.acked == report.samples.sent > 0


async def test_messages_that_no_broker_takes_count_as_failed() -> None:
    away = StreamSettings(bootstrap="127.0.0.1:1", request_timeout_seconds=0.3)
    report = await simulate(Plan.checked(2, 0.5, 0.5, 0.5, 0), away, asyncio.Event(), tell=quiet)
    assert report.samples.sent == report.samples.failed > 0
    assert report.samples.acked == 0


@pytest.mark.parametrize(
    ("plan", "name"),
    [
        ((0, 1, 1, None, 1), "--agents"),
        ((1, 0, 1, None, 1), "--interval"),
        ((1, float("nan"), 1, None, 1), "--interval"),
        ((1, 1, -1, None, 1), "--heartbeat-interval"),
        ((1, 1, 1, 0, 1), "--duration"),
        ((1, 1, 1, None, 65), "--gpus"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(plan: tuple[int, float, float, float | None, int], name: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: "):
        Plan.checked(*plan)
