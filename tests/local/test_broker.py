"""What both brokers must do, told to each of them."""

import asyncio
import uuid

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from fleetpulse.local.apache_kafka import ApacheKafka, new_cluster_id
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.kafka_probe import is_ready
from fleetpulse.local.ports import LOOPBACK, is_free
from fleetpulse.local.processes import StartError
from fleetpulse.settings import StreamSettings
from fleetpulse.stream.admin import TopicError, ensure_topics, missing_topics
from fleetpulse.stream.topics import ALL

Broker = EmbeddedBroker | ApacheKafka


@pytest.fixture
async def topic(broker: Broker) -> str:
    """A topic of one partition, for this test alone."""
    name = f"test-{uuid.uuid4().hex}"
    administrator = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await administrator.start()
    try:
        await administrator.create_topics([NewTopic(name, 1, 1)])
    finally:
        await administrator.close()
    return name


async def write(broker: Broker, topic: str, values: list[bytes]) -> list[int]:
    """Offsets that an idempotent producer is told."""
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, enable_idempotence=True, acks="all")
    await producer.start()
    try:
        sent = [await producer.send(topic, value, key=b"key", headers=[("name", b"header")]) for value in values]
        return [delivery.offset for delivery in await asyncio.gather(*sent)]
    finally:
        await producer.stop()


async def read(broker: Broker, topic: str) -> list[tuple[int, bytes, bytes, tuple[tuple[str, bytes], ...]]]:
    """Everything in a topic, from its beginning to its end."""
    partition = TopicPartition(topic, 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap)
    await consumer.start()
    try:
        consumer.assign([partition])
        first = (await consumer.beginning_offsets([partition]))[partition]
        end = (await consumer.end_offsets([partition]))[partition]
        consumer.seek(partition, first)
        found = []
        while len(found) < end - first:
            found.append(await asyncio.wait_for(consumer.getone(), 10))
        return [(message.offset, message.key, message.value, tuple(message.headers)) for message in found]
    finally:
        await consumer.stop()


async def test_messages_come_back_in_order_with_keys_headers_and_the_offsets_the_producer_was_told(
    broker: Broker, topic: str
) -> None:
    values = [f"value {place}".encode() for place in range(500)]
    assert await write(broker, topic, values) == list(range(500))
    expected = [(place, b"key", value, (("name", b"header"),)) for place, value in enumerate(values)]
    assert await read(broker, topic) == expected


async def test_an_orderly_stop_keeps_everything(broker: Broker, topic: str) -> None:
    await write(broker, topic, [b"before"])
    broker.stop()
    assert not broker.running
    broker.start()
    await write(broker, topic, [b"after"])
    assert [row[:3] for row in await read(broker, topic)] == [(0, b"key", b"before"), (1, b"key", b"after")]


async def test_a_killed_broker_starts_again_on_its_data(broker: Broker, topic: str) -> None:
    await write(broker, topic, [b"before"])
    if isinstance(broker, EmbeddedBroker):
        # It saves at its leisure; what it has not saved is lost, which docs/local.md says.
        broker.stop()
        broker.start()
    broker.kill()
    assert is_free(broker.port)
    broker.start()
    await write(broker, topic, [b"after"])
    assert [row[2] for row in await read(broker, topic)] == [b"before", b"after"]


async def test_a_frozen_broker_answers_nobody_and_goes_on_where_it_was(broker: Broker, topic: str) -> None:
    await write(broker, topic, [b"before"])
    broker.freeze()
    try:
        assert not is_ready(LOOPBACK, broker.port, timeout_seconds=0.3)
        assert broker.running
    finally:
        broker.thaw()
    await write(broker, topic, [b"after"])
    assert [row[2] for row in await read(broker, topic)] == [b"before", b"after"]


async def test_any_number_of_processes_may_create_the_topics_at_once(broker: Broker) -> None:
    settings = StreamSettings(bootstrap=broker.bootstrap, partitions=3)
    created = await asyncio.gather(*(ensure_topics(settings) for _ in range(4)))
    assert sum(len(names) for names in created) in (len(ALL), 0)  # 0 when another test was first
    assert await missing_topics(settings) == []


async def test_a_topic_the_broker_refuses_is_told_with_what_to_do(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetpulse.stream.admin.ALL", [type(ALL[0])(f"refused-{uuid.uuid4().hex}", "too many", 1000)])
    with pytest.raises(TopicError, match=r"InvalidReplicationFactorError.*FLEETPULSE_KAFKA_REPLICATION_FACTOR"):
        await ensure_topics(StreamSettings(bootstrap=broker.bootstrap, replication_factor=3))


def test_a_taken_port_is_told_before_anything_starts(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = type(broker)(tmp_path_factory.mktemp("other"), broker.port)
    with pytest.raises(StartError, match=f"port {broker.port} is taken"):
        other.start()
    assert not other.running


def test_no_cluster_id_looks_like_an_option() -> None:
    assert not any(new_cluster_id().startswith("-") for _ in range(2000))
