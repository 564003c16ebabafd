"""What lag tools see of the collectors, on Apache Kafka."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from collector import lag_hint
from collector.lag_hint import GROUP, tell_offsets
from fleetpulse.local.apache_kafka import ApacheKafka
from fleetpulse.local.ports import free_port
from fleetpulse.settings import StreamSettings
from fleetpulse.stream.admin import ensure_topics

pytestmark = pytest.mark.kafka


@pytest.fixture
def kafka() -> Iterator[ApacheKafka]:
    with tempfile.TemporaryDirectory() as folder:
        kafka = ApacheKafka(Path(folder), free_port())
        kafka.start()
        yield kafka
        kafka.stop()


async def test_offsets_of_the_database_show_as_a_consumer_groups(kafka: ApacheKafka, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lag_hint, "INTERVAL_SECONDS", 0.1)
    settings = StreamSettings(bootstrap=kafka.bootstrap, partitions=2)
    await ensure_topics(settings)
    offsets = {TopicPartition("otlp_metrics", 0): 41, TopicPartition("fleetpulse.heartbeats", 1): 7}
    telling = asyncio.create_task(tell_offsets(settings, "test", lambda: offsets))
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        deadline = time.monotonic() + 30
        seen: dict[TopicPartition, int] = {}
        told: dict = {}
        while seen != offsets:
            assert time.monotonic() < deadline, seen
            await asyncio.sleep(0.2)
            with contextlib.suppress(GroupCoordinatorNotAvailableError):  # until its own topic is made
                told = await admin.list_consumer_group_offsets(GROUP)
            seen = {partition: position.offset for partition, position in told.items()}
    finally:
        telling.cancel()
        await asyncio.wait({telling})
        await admin.close()
