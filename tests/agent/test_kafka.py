"""The agent into a real broker that comes late and goes away."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer

import agent.main
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.ports import free_port
from fleetpulse.settings import AgentSettings, StreamSettings
from fleetpulse.stream import heartbeat, topics

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """A broker that is not started."""
    embedded = EmbeddedBroker(tmp_path / "broker", free_port())
    yield embedded
    if embedded.running:
        embedded.stop()


@contextlib.asynccontextmanager
async def running(tmp_path: Path, broker: EmbeddedBroker) -> AsyncIterator[None]:
    stop = asyncio.Event()
    settings = AgentSettings(
        worker_id="worker-1",
        instance_id="instance-1",
        port=0,
        heartbeat_interval_seconds=0.1,
        sample_interval_seconds=0.2,
        simulate_gpu_count=1,
        state_dir=tmp_path / "state",
    )
    stream = StreamSettings(bootstrap=broker.bootstrap, request_timeout_seconds=2)
    task = asyncio.create_task(agent.main.run(settings, stream, stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)


async def received(broker: EmbeddedBroker, topic: str, enough: Callable[[list], bool]) -> list[tuple[bytes, bytes]]:
    """Keys and values of a topic from its beginning, until there are enough."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    found: list[tuple[bytes, bytes]] = []
    try:
        async with asyncio.timeout(20):
            while not enough(found):
                batches = await consumer.getmany(timeout_ms=200)
                found += [(r.key, r.value) for records in batches.values() for r in records]
    finally:
        await consumer.stop()
    return found


def spooled(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in tmp_path.rglob("*.segment"))


async def test_what_was_made_before_the_broker_came_arrives_first(
    tmp_path: Path, broker: EmbeddedBroker, eventually: Eventually
) -> None:
    async with running(tmp_path, broker):
        await eventually(lambda: spooled(tmp_path) > 50_000)
        await asyncio.to_thread(broker.start)
        beats = await received(broker, topics.HEARTBEATS.name, lambda found: len(found) >= 40)
        samples = await received(broker, topics.METRICS.name, lambda found: len(found) >= 15)
    assert {key for key, _ in beats} == {b"instance-1"}
    assert {key for key, _ in samples} == {b"worker-1"}
    assert {len(value) for _, value in samples} == {len(samples[0][1])}
    sequences = [heartbeat.decode(value).sequence for _, value in beats]
    assert list(dict.fromkeys(sequences))[:40] == list(range(1, 41))


async def test_a_broker_that_went_away_and_came_back_misses_nothing(
    tmp_path: Path, broker: EmbeddedBroker, eventually: Eventually
) -> None:
    await asyncio.to_thread(broker.start)
    async with running(tmp_path, broker):
        await received(broker, topics.HEARTBEATS.name, lambda found: len(found) >= 5)
        await asyncio.to_thread(broker.stop)
        await eventually(lambda: spooled(tmp_path) > 20_000)
        await asyncio.to_thread(broker.start)

        def enough(found: list) -> bool:
            return any(heartbeat.decode(value).sequence >= 60 for _, value in found)

        beats = await received(broker, topics.HEARTBEATS.name, enough)
    seen = {heartbeat.decode(value).sequence for _, value in beats}
    assert set(range(1, 61)) <= seen
