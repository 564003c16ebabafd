"""From the outbox to a real broker."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from prometheus_client import CollectorRegistry

from control.database import Database
from control.lifecycle import NewInstance, create, transition
from control.lifecycle.outbox import OutboxMetrics, Publisher, listen
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.ports import free_port
from fleetpulse.settings import DatabaseSettings, StreamSettings
from fleetpulse.stream import lifecycle
from fleetpulse.stream.admin import ensure_topics
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import LIFECYCLE

Connection = psycopg.AsyncConnection[Any]
WAIT_SECONDS = 20.0
PARTITIONS = 2


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    folder: Path = tmp_path_factory.mktemp("broker")
    broker = EmbeddedBroker(folder, free_port())
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def stream(broker: EmbeddedBroker) -> StreamSettings:
    settings = StreamSettings(bootstrap=broker.bootstrap, partitions=PARTITIONS, request_timeout_seconds=2)
    asyncio.run(ensure_topics(settings))
    return settings


@pytest.fixture
async def producer(stream: StreamSettings) -> AsyncIterator[StreamProducer]:
    producer = StreamProducer(stream, "test")
    await producer.start()
    yield producer
    await producer.stop()


def publisher(database: Database, producer: StreamProducer) -> Publisher:
    return Publisher(database, producer, OutboxMetrics(CollectorRegistry()))


async def live(database: Database, organization_id: UUID, instance_id: str) -> None:
    """A whole life: four messages and a tombstone."""
    async with database.transaction() as connection:
        wanted = NewInstance(organization_id, "mock", "z", "small", instance_id=instance_id)
        await create(connection, wanted, actor="admin")
    for state in ("terminating", "terminated", "archived"):
        async with database.transaction() as connection:
            await transition(connection, instance_id, state, reason="r", detail="d", evidence={}, actor="admin")


async def waiting(sql: Connection) -> int:
    row = await (await sql.execute("SELECT count(*) FROM lifecycle_outbox")).fetchone()
    return int(row[0]) if row else -1


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not await condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.02)


async def published(stream: StreamSettings, instance_id: str) -> list[int | None]:
    """Versions of an instance's messages in the topic, in order; None is the tombstone."""
    consumer = AIOKafkaConsumer(bootstrap_servers=stream.bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(LIFECYCLE.name, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        found: list[int | None] = []
        while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                mine = [record.value for record in records if record.key == instance_id.encode()]
                found += [lifecycle.decode(value).version if value else None for value in mine]
        return found
    finally:
        await consumer.stop()


async def test_messages_go_out_in_order_and_leave_the_outbox(
    database: Database, sql: Connection, organization_id: UUID, stream: StreamSettings, producer: StreamProducer
) -> None:
    names = [f"in-order-{number}" for number in range(20)]
    for name in names:
        await live(database, organization_id, name)
    assert await publisher(database, producer).publish() == 100
    assert await waiting(sql) == 0
    assert [await published(stream, name) for name in (names[0], names[-1])] == [[1, 2, 3, 4, None]] * 2


async def test_a_hint_wakes_the_publisher(
    database: Database,
    database_settings: DatabaseSettings,
    sql: Connection,
    organization_id: UUID,
    producer: StreamProducer,
) -> None:
    hint = asyncio.Event()
    task = asyncio.create_task(listen(database_settings, hint))
    try:

        async def listening() -> bool:
            await sql.execute("SELECT pg_notify('fleetpulse_lifecycle', '')")
            return hint.is_set()

        await until(listening, "a listener")
        hint.clear()
        await live(database, organization_id, "hinted")
        async with asyncio.timeout(WAIT_SECONDS):
            await hint.wait()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_while_one_publishes_another_leaves_the_outbox_alone(
    database: Database, sql: Connection, organization_id: UUID, producer: StreamProducer
) -> None:
    await live(database, organization_id, "leased")
    lease = "UPDATE lifecycle_publisher SET owner = 'other', lease_until = clock_timestamp() + interval %s"
    await sql.execute(lease.replace("%s", "'1 hour'"))
    assert await publisher(database, producer).publish() == 0
    await sql.execute(lease.replace("%s", "'-1 second'"))
    assert await publisher(database, producer).publish() == 5


async def test_two_publishers_send_everything_once(
    database: Database, sql: Connection, organization_id: UUID, stream: StreamSettings, producer: StreamProducer
) -> None:
    await asyncio.gather(*(live(database, organization_id, f"two-{number}") for number in range(5)))
    two = [publisher(database, producer), publisher(database, producer)]

    async def empty() -> bool:
        await asyncio.gather(*(one.publish() for one in two))
        return await waiting(sql) == 0

    await until(empty, "an empty outbox")
    assert await published(stream, "two-3") == [1, 2, 3, 4, None]


async def test_one_killed_between_sending_and_deleting_leaves_its_messages_to_the_next(
    database: Database, sql: Connection, organization_id: UUID, stream: StreamSettings, producer: StreamProducer
) -> None:
    await live(database, organization_id, "killed")
    # A deferred trigger fails the deleting transaction, as a death just before it would.
    await sql.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'killed'; END $$;"
        "CREATE TRIGGER fail BEFORE DELETE ON lifecycle_outbox EXECUTE FUNCTION fail()"
    )
    with pytest.raises(psycopg.errors.RaiseException):
        await publisher(database, producer).publish()
    assert await waiting(sql) == 5
    await sql.execute("DROP FUNCTION fail CASCADE")
    assert await publisher(database, producer).publish() == 0
    await sql.execute("UPDATE lifecycle_publisher SET lease_until = clock_timestamp()")
    assert await publisher(database, producer).publish() == 5
    assert await published(stream, "killed") == [1, 2, 3, 4, None] * 2


async def test_one_that_lost_its_lease_while_sending_deletes_nothing(
    database: Database, sql: Connection, organization_id: UUID, producer: StreamProducer, monkeypatch: Any
) -> None:
    await live(database, organization_id, "frozen")
    send = producer.send

    async def robbed(*arguments: Any, **options: Any) -> None:
        await send(*arguments, **options)
        await sql.execute("UPDATE lifecycle_publisher SET owner = 'other', token = token + 1")

    monkeypatch.setattr(producer, "send", robbed)
    await publisher(database, producer).publish()
    assert await waiting(sql) == 5


async def test_messages_wait_for_a_broker_that_is_away(
    database: Database,
    sql: Connection,
    organization_id: UUID,
    stream: StreamSettings,
    producer: StreamProducer,
    broker: EmbeddedBroker,
) -> None:
    mine = publisher(database, producer)
    broker.stop()
    try:
        await live(database, organization_id, "waits")
        assert await mine.publish() == 0
        assert await waiting(sql) == 5
    finally:
        broker.start()

    async def empty() -> bool:
        await mine.publish()
        return await waiting(sql) == 0

    await until(empty, "an empty outbox")
    versions = await published(stream, "waits")
    assert sorted(set(versions), key=versions.index) == [1, 2, 3, 4, None]
