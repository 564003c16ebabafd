import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from collector.main import Collector
from fleetpulse.http import serving
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.ports import free_port
from fleetpulse.settings import CollectorSettings, DatabaseSettings, StreamSettings
from fleetpulse.stream.admin import ensure_topics
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import DEADLETTER, METRICS

WAIT_SECONDS = 30.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """A broker with nothing in it."""
    broker = EmbeddedBroker(tmp_path / "broker", free_port())
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
async def stream(broker: EmbeddedBroker) -> StreamSettings:
    """Settings of ``broker``, the topics made."""
    settings = StreamSettings(
        bootstrap=broker.bootstrap, partitions=4, request_timeout_seconds=3, stall_timeout_seconds=4
    )
    await ensure_topics(settings)
    return settings


@pytest.fixture
async def producer(stream: StreamSettings) -> AsyncIterator[StreamProducer]:
    producer = StreamProducer(stream, "test-agent")
    await producer.start()
    yield producer
    await producer.stop()


@dataclass
class Fleet:
    """Collectors under test and what surrounds them."""

    stream: StreamSettings
    database: DatabaseSettings
    producer: StreamProducer
    settings: CollectorSettings = field(default_factory=lambda: CollectorSettings(port=0, lease_seconds=2))

    @asynccontextmanager
    async def collector(self, **changes: object) -> AsyncIterator[tuple[Collector, str]]:
        """A running collector and its URL; stopped in order at the end."""
        settings = self.settings.model_copy(update=changes)
        collector = Collector(settings, self.stream, self.database)
        stop = asyncio.Event()
        await collector.producer.start()
        async with serving(collector.application(), "127.0.0.1", 0) as port:
            working = asyncio.create_task(collector.work(stop))
            try:
                yield collector, f"http://127.0.0.1:{port}"
            finally:
                stop.set()
                await working
                await collector.producer.stop()

    async def send(self, *messages: bytes, topic: str = METRICS.name, key: bytes = b"worker") -> None:
        for message in messages:
            await self.producer.send(topic, message, key)

    def query(self, sql: str, *parameters: object) -> list[tuple]:
        with psycopg.connect(self.database.url.get_secret_value()) as connection:
            return connection.execute(sql, parameters).fetchall()

    def count(self, relation: str) -> int:
        return self.query(f"SELECT count(*) FROM {relation}")[0][0]

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition, which must come true in time."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"not in time: {what}"
            await asyncio.sleep(0.05)

    async def rows(self, relation: str, count: int) -> None:
        """Wait until a relation has so many rows."""
        await self.until(lambda: self.count(relation) >= count, f"{count} rows in {relation}")
        assert self.count(relation) == count

    async def dead_letters(self, count: int) -> list[dict[str, str]]:
        """Headers of the first ``count`` dead letters, and their values in hex."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.stream.bootstrap, enable_auto_commit=False)
        await consumer.start()
        try:
            partitions = [TopicPartition(DEADLETTER.name, number) for number in range(self.stream.partitions)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            found: list[dict[str, str]] = []
            deadline = time.monotonic() + WAIT_SECONDS
            while len(found) < count:
                assert time.monotonic() < deadline, f"{len(found)} of {count} dead letters"
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        headers = {name: value.decode() for name, value in record.headers}
                        found.append(headers | {"value": (record.value or b"").hex()})
            return found
        finally:
            await consumer.stop()


@pytest.fixture
def make_fleet(stream: StreamSettings, producer: StreamProducer) -> Callable[[DatabaseSettings], Fleet]:
    """A fleet on another database than the test's."""
    return lambda database: Fleet(stream, database, producer)


@pytest.fixture
def fleet(stream: StreamSettings, database_settings: DatabaseSettings, producer: StreamProducer) -> Fleet:
    return Fleet(stream, database_settings, producer)
