"""All jobs, the watchdog and the publisher together, on a real broker and database."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from prometheus_client import CollectorRegistry

from control.follower import follow
from control.jobs import run_jobs
from control.metrics import HeartbeatMetrics
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.ports import free_port
from fleetpulse.settings import DatabaseSettings, StreamSettings
from fleetpulse.stream import heartbeat, lifecycle
from fleetpulse.stream.admin import ensure_topics
from fleetpulse.stream.consumer import StreamReader
from fleetpulse.stream.errors import NotDeliveredError
from fleetpulse.stream.fleet_view import FleetRules, FleetView
from fleetpulse.stream.heartbeat import Engine, Heartbeat
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import HEARTBEATS, LIFECYCLE

# Long enough for silence to be stale twice over, and for a reader to notice.
FROZEN_SECONDS = 8.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(tmp_path / "broker", free_port())
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def stream(broker: EmbeddedBroker) -> StreamSettings:
    settings = StreamSettings(bootstrap=broker.bootstrap, partitions=1, request_timeout_seconds=3)
    asyncio.run(ensure_topics(settings))
    return settings


async def beat(producer: StreamProducer, instance_id: str) -> None:
    """A heartbeat a second, for ever; those that the broker does not take are lost."""
    for sequence in range(1, 10_000):
        message = Heartbeat(
            worker_id=instance_id,
            instance_id=instance_id,
            boot_id="b",
            sequence=sequence,
            sent_unix_nano=time.time_ns(),
            interval_seconds=1.0,
            status="ready",
            agent_version="1",
            engine=Engine("ready", step_count=sequence, requests_running=0, requests_waiting=0),
        )
        with contextlib.suppress(NotDeliveredError):
            await producer.send(HEARTBEATS.name, heartbeat.encode(message), key=instance_id.encode())
        await asyncio.sleep(1.0)


async def published(stream: StreamSettings, instance_id: str) -> list[str | None]:
    """States of an instance's lifecycle messages, in order; None is the tombstone."""
    consumer = AIOKafkaConsumer(bootstrap_servers=stream.bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        partition = TopicPartition(LIFECYCLE.name, 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        found: list[str | None] = []
        while await consumer.position(partition) < end:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                mine = [record.value for record in records if record.key == instance_id.encode()]
                found += [lifecycle.decode(value).state if value else None for value in mine]
        return found
    finally:
        await consumer.stop()


@contextlib.asynccontextmanager
async def control(fleet: Any, database_settings: DatabaseSettings, stream: StreamSettings) -> AsyncIterator[FleetView]:
    """What the control service runs, but for its API."""
    view = FleetView(FleetRules(settle_seconds=0.5))
    async with StreamReader(stream, [HEARTBEATS.name], "test") as reader:
        tasks = [
            asyncio.create_task(follow(reader, view, HeartbeatMetrics(CollectorRegistry()))),
            asyncio.create_task(
                run_jobs(
                    fleet.database,
                    view,
                    reader,
                    {"memory": fleet.provider},
                    fleet.settings,
                    fleet.registry_of_control,
                    stream=stream,
                    database_settings=database_settings,
                )
            ),
        ]
        try:
            yield view
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_whole_life_with_an_outage_of_the_broker(
    make_fleet: Any, database_settings: DatabaseSettings, stream: StreamSettings, broker: EmbeddedBroker, worker: Any
) -> None:
    """While the broker stands still nobody dies; a worker that is killed then does, and its life ends in order."""
    fleet = await make_fleet(archive_after_seconds=0.5, dead_keep_seconds=3600)
    fleet.registry_of_control = CollectorRegistry()
    fleet.provider.default_address = worker.address()
    producer = StreamProducer(stream, "test-agents")
    await producer.start()
    names = ["i-1", "i-2"]
    agents = {name: asyncio.create_task(beat(producer, name)) for name in names}
    try:
        async with control(fleet, database_settings, stream) as view:
            for name in names:
                await fleet.make(name)
            for name in names:
                await fleet.until_state(name, "ready")
            await fleet.until(lambda: view.counts(time.monotonic())["alive"] == 2, "heartbeats")

            broker.freeze()
            frozen_at = time.monotonic()
            await fleet.until(lambda: view.counts(time.monotonic())["stale"] == 2, "silence")
            await fleet.until(lambda: time.monotonic() - frozen_at > FROZEN_SECONDS, "the end of the outage")
            assert [await fleet.state(name) for name in names] == ["ready", "ready"]
            broker.thaw()
            await fleet.until(lambda: view.counts(time.monotonic())["alive"] == 2, "heartbeats again")
            await fleet.until(lambda: not view.mass_silence(time.monotonic()).active, "a healthy pipeline")
            assert [await fleet.history(name) for name in names] == [
                [
                    ("provisioning", "requested"),
                    ("booting", "machine_made"),
                    ("installing", "runtime_started"),
                    ("ready", "ready"),
                ]
            ] * 2

            # Killed: no heartbeats any more, and nobody listens where its agent was.
            agents["i-1"].cancel()
            await fleet.sql.execute(
                "UPDATE instances SET agent_url = %s, version = version + 1, state_since = clock_timestamp()"
                " WHERE instance_id = 'i-1'",
                (f"http://127.0.0.1:{free_port()}",),
            )
            await fleet.until_state("i-1", "worker_dead")
            assert await fleet.state("i-2") == "ready"

            await fleet.move("i-1", "terminating")
            await fleet.until_state("i-1", "archived")

            async def all_published() -> bool:
                return (await published(stream, "i-1"))[-1:] == [None]

            await fleet.until(all_published, "a tombstone")
    finally:
        for agent in agents.values():
            agent.cancel()
        await asyncio.gather(*agents.values(), return_exceptions=True)
        await producer.stop()
    told = await published(stream, "i-1")
    # A message may come twice where the broker stood still between taking and acknowledging it.
    assert [state for number, state in enumerate(told) if state != told[number - 1]] == [
        "provisioning",
        "booting",
        "installing",
        "ready",
        "worker_dead",
        "terminating",
        "terminated",
        "archived",
        None,
    ]
    assert "m-i-1" not in fleet.provider.machines
