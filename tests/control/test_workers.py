import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.ports import free_port
from fleetpulse.settings import DatabaseSettings, StreamSettings
from fleetpulse.stream import heartbeat
from fleetpulse.stream.admin import ensure_topics
from fleetpulse.stream.heartbeat import Engine, Heartbeat, Load
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import HEARTBEATS


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(tmp_path / "broker", free_port())
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


class Workers:
    """Heartbeats of made-up workers."""

    def __init__(self, producer: StreamProducer) -> None:
        self._producer = producer
        self._sequences: dict[str, int] = {}

    async def beat(self, worker: str, skip: int = 0, **changes: Any) -> None:
        self._sequences[worker] = self._sequences.get(worker, 0) + 1 + skip
        fields: dict[str, Any] = {
            "worker_id": worker,
            "instance_id": f"{worker}-instance",
            "boot_id": "boot",
            "sequence": self._sequences[worker],
            "sent_unix_nano": time.time_ns(),
            "interval_seconds": 1.0,
            "status": "ready",
            "agent_version": "1.2.3",
            "agent_checksum": "abc",
        }
        # As agents do it: those of one worker stay in order.
        await self.send(heartbeat.encode(Heartbeat(**(fields | changes))), worker.encode())

    async def send(self, value: bytes, key: bytes | None = None) -> None:
        await self._producer.send(HEARTBEATS.name, value, key)


@pytest.fixture
async def workers(broker: EmbeddedBroker) -> Any:
    stream = StreamSettings(bootstrap=broker.bootstrap, partitions=3)
    await ensure_topics(stream)
    producer = StreamProducer(stream, "test")
    await producer.start()
    yield Workers(producer)
    await producer.stop()


def by_id(fleet: Any) -> dict[str, Any]:
    return {one["worker_id"]: one for one in fleet["workers"]}


async def joined(service: Any) -> None:
    """Only what is sent from now on is sure to be read."""
    await service.until("/workers", lambda _, fleet: fleet["stream"]["lag_records"] is not None)


async def test_the_fleet_is_seen_as_its_heartbeats_tell(
    broker: EmbeddedBroker, workers: Workers, database_settings: DatabaseSettings, running: Any
) -> None:
    with psycopg.connect(database_settings.url.get_secret_value(), autocommit=True) as sql:
        sql.execute("INSERT INTO workers (worker_id, instance_id, host_name) VALUES ('known', 'ki', 'known-host')")
    async with running(database_settings, broker.bootstrap) as service:
        await joined(service)
        engine = Engine("ready", kind="vllm", models=("m",), requests_waiting=3, requests_running=2, step_count=7)
        load = Load(cpu_utilization_ratio=0.5, gpu_count=8)
        await workers.beat("busy", engine=engine, load=load, model_id="m", host_name="h")
        await workers.beat("gappy")
        await workers.beat("gappy", skip=4)
        await workers.beat("ahead", sent_unix_nano=time.time_ns() + 60_000_000_000, agent_version="1.2.4")
        for junk in (b"", b"\xff\x00junk", b'{"schema_version": 99}', os.urandom(64), b"null"):
            await workers.send(junk)
        await workers.beat("last")
        # Partitions are read each at its own pace: the last one sent need not be the last one seen.
        fleet = await service.until(
            "/workers",
            lambda _, fleet: (
                {"last", "known"} <= set(by_id(fleet))
                and fleet["summary"]["alive"] == 4
                and by_id(fleet)["gappy"]["sequence"] == 6
            ),
        )
        assert fleet["summary"] == {"workers": 5, "alive": 4, "stale": 0, "never_seen": 1}
        assert fleet["versions"] == [
            {"agent_version": "1.2.3", "agent_checksum": "abc", "workers": 3},
            {"agent_version": "1.2.4", "agent_checksum": "abc", "workers": 1},
        ]
        assert fleet["mass_silence"]["reason"] == "just_joined"
        assert fleet["stream"]["connected"] is True
        assert fleet["stream"]["joined_for_seconds"] > 0
        seen = by_id(fleet)
        busy = seen["busy"]
        assert (busy["state"], busy["instance_id"], busy["model_id"], busy["host_name"]) == (
            "alive",
            "busy-instance",
            "m",
            "h",
        )
        assert (busy["engine"]["requests_waiting"], busy["engine"]["kv_cache_usage_ratio"]) == (3, None)
        assert (busy["load"]["cpu_utilization_ratio"], busy["load"]["gpu_utilization_ratio"]) == (0.5, None)
        assert 0 <= busy["heartbeat_age_seconds"] < 3.3
        assert busy["boot_id"] == "boot"
        assert (seen["gappy"]["sequence_gaps"], seen["gappy"]["heartbeats_missed"]) == (1, 4)
        assert seen["ahead"]["clock_skew_seconds"] == pytest.approx(60, abs=5)
        assert seen["last"]["engine"] is None
        known = seen["known"]
        assert (known["state"], known["host_name"], known["heartbeat_age_seconds"]) == (
            "never_seen",
            "known-host",
            None,
        )
        assert known["recorded_age_seconds"] >= 0
        status, one, _ = await service.get("/workers/gappy")
        assert (status, one["sequence"]) == (200, 6)
        await metrics_show(
            service,
            'fleetpulse_control_heartbeats_refused_total{reason="unknown_schema_version"} 1.0',
            'fleetpulse_control_heartbeats_refused_total{reason="malformed_heartbeat"} 4.0',
            'fleetpulse_control_heartbeats_observed_total{observation="first"} 4.0',
        )


async def metrics_show(service: Any, *wanted: str) -> None:
    """Wait until control's metrics hold each of the lines."""
    text = ""
    try:
        async with asyncio.timeout(10):
            while not all(line in text for line in wanted):
                async with service._session.get(f"{service.url}/metrics") as answer:
                    text = await answer.text()
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail("not shown: " + ", ".join(line for line in wanted if line not in text))


async def test_a_worker_that_falls_silent_is_stale_in_time_and_comes_back(
    broker: EmbeddedBroker, workers: Workers, database_settings: DatabaseSettings, running: Any
) -> None:
    async with running(database_settings, broker.bootstrap, stale_after_seconds=0.5) as service:
        await joined(service)
        await workers.beat("w", interval_seconds=0.1)
        await service.until("/workers/w", lambda status, one: status == 200 and one["state"] == "alive")
        stale = await service.until("/workers/w", lambda _, one: one["state"] == "stale")
        assert stale["stale_after_seconds"] == 0.5
        assert 0.5 < stale["heartbeat_age_seconds"] < 2
        assert stale["status"] == "ready"
        await workers.beat("w", interval_seconds=0.1)
        await service.until("/workers/w", lambda _, one: one["state"] == "alive")


async def test_control_hears_the_fleet_again_after_the_broker_was_away(
    broker: EmbeddedBroker, workers: Workers, database_settings: DatabaseSettings, running: Any
) -> None:
    async with running(database_settings, broker.bootstrap) as service:
        await joined(service)
        await workers.beat("before")
        await service.until("/workers/before", lambda status, _: status == 200)
        await asyncio.to_thread(broker.stop)
        await service.until("/readyz", lambda _, body: "stream" in body.get("missing", {}))
        await service.until("/workers", lambda _, fleet: fleet["mass_silence"]["reason"] == "not_following")
        await asyncio.to_thread(broker.start)
        await service.until("/readyz", lambda status, _: status == 200)
        await workers.beat("after")
        await service.until("/workers/after", lambda status, _: status == 200)
