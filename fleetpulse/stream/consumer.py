"""Following topics without a consumer group: every reader sees every partition, each for itself."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.protocol.fetch import FetchRequest

from fleetpulse.settings import StreamSettings
from fleetpulse.stream.client import connection_options, start_client, stop_client
from fleetpulse.telemetry import logger

_log = logger(__name__)

RECONNECT_SECONDS: Final = 0.5
PROBE_SECONDS: Final = 2.0
POLL_MILLISECONDS: Final = 200
# Of one partition in one fetch: large enough for a backlog, small enough for the memory of many partitions.
PARTITION_FETCH_BYTES: Final = 4_194_304
FETCH_BYTES: Final = 16_777_216
FETCH_WAIT_MILLISECONDS: Final = 100
EMPTY_FETCH_SECONDS: Final = 0.01

Record: TypeAlias = "ConsumerRecord[bytes | None, bytes | None]"


def make_consumer(
    settings: StreamSettings, client_id: str, pace_seconds: float = EMPTY_FETCH_SECONDS
) -> AIOKafkaConsumer:
    """A consumer for manual assignment: no group, no commits, an offset out of range is the caller's decision."""
    consumer = AIOKafkaConsumer(
        **connection_options(settings, client_id),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
        fetch_max_bytes=FETCH_BYTES,
        fetch_max_wait_ms=FETCH_WAIT_MILLISECONDS,
    )
    _pace_empty_fetches(consumer, pace_seconds)
    return consumer


def _pace_empty_fetches(consumer: AIOKafkaConsumer, pace_seconds: float) -> None:
    """Ask a broker that has nothing no more often than this.

    A broker is to hold a fetch back until there is something or FETCH_WAIT_MILLISECONDS have passed. The embedded one
    answers at once, and two idle processes would ask away a core. Brokers that wait never notice.
    """
    client = consumer._client  # noqa: SLF001
    send = client.send

    async def paced(node_id: int, request: Any, **options: Any) -> Any:
        asked = time.monotonic()
        response = await send(node_id, request, **options)
        if isinstance(request, FetchRequest) and _holds_nothing(response):
            await asyncio.sleep(max(0.0, asked + pace_seconds - time.monotonic()))
        return response

    client.send = paced


def _holds_nothing(response: Any) -> bool:
    """Neither records nor an error: a partition is (number, error code, …, records)."""
    return not any(partition[1] or partition[-1] for _, partitions in response.topics for partition in partitions)


async def topic_partitions(consumer: AIOKafkaConsumer, topics: Sequence[str]) -> list[TopicPartition]:
    """All partitions of the topics, as the brokers know them now; topics that do not exist have none."""
    # The public calls only know subscribed topics; assignment by hand needs the cluster's own view.
    metadata = await consumer._client.fetch_all_metadata()  # noqa: SLF001
    return [
        TopicPartition(topic, partition)
        for topic in topics
        for partition in sorted(metadata.partitions_for_topic(topic) or ())
    ]


class StreamReader:
    """Follows topics, from their end on unless told otherwise, through broker outages.

    After an outage it goes on where it was. A partition whose position no longer exists is followed from its end:
    readers of the live picture want now, not then. Of the topics ``from_start``, which are compacted ones, everything
    that is there is read first, also when the topic was made anew. ``pace_seconds`` is how long a broker that has
    nothing, and does not hold the question back, is left alone.
    """

    def __init__(
        self,
        settings: StreamSettings,
        topics: Sequence[str],
        client_id: str,
        *,
        from_start: Collection[str] = (),
        pace_seconds: float = EMPTY_FETCH_SECONDS,
    ) -> None:
        self._from_start = frozenset(from_start)
        self._pace_seconds = pace_seconds
        self._settings = settings
        self._topics = tuple(topics)
        self._client_id = client_id
        self._positions: dict[TopicPartition, int] = {}
        self._consumer: AIOKafkaConsumer | None = None
        self._answered = 0.0
        self._advanced = 0.0
        self.connected = False
        self.lag_records: int | None = None
        """Records that exist but were not read at the last probe; None before the first."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._disconnect()

    async def batches(self) -> AsyncIterator[list[Record]]:
        """Lists of records as they come, a partition's records in order; empty ones while nothing comes."""
        probed = 0.0
        while True:
            try:
                consumer = self._consumer or await self._connect()
                now = time.monotonic()
                if now - probed >= PROBE_SECONDS:
                    probed = now
                    await self._probe(consumer)
                records = await self._poll(consumer)
            except (KafkaError, OSError, TimeoutError) as error:
                await self._lost(error)
                records = []
            yield records

    async def _connect(self) -> AIOKafkaConsumer:
        consumer = make_consumer(self._settings, self._client_id, self._pace_seconds)
        try:
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                await start_client(consumer)
                await self._assign(consumer, await topic_partitions(consumer, self._topics))
        except BaseException:
            await stop_client(consumer)
            raise
        self._consumer = consumer
        self._answered = self._advanced = time.monotonic()
        self.connected = True
        return consumer

    async def _assign(self, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> None:
        consumer.assign(partitions)
        if not partitions:
            return
        ends = await consumer.end_offsets(partitions)
        whole = [partition for partition in partitions if partition.topic in self._from_start]
        firsts = ends | (await consumer.beginning_offsets(whole) if whole else {})
        for partition in partitions:
            position = self._positions.get(partition, firsts[partition])
            if position > ends[partition]:
                # The topic was made anew.
                position = firsts[partition]
            self._positions[partition] = position
            consumer.seek(partition, position)

    async def _poll(self, consumer: AIOKafkaConsumer) -> list[Record]:
        if not consumer.assignment():
            await asyncio.sleep(POLL_MILLISECONDS / 1000)
            return []
        try:
            fetched = await consumer.getmany(timeout_ms=POLL_MILLISECONDS)
        except OffsetOutOfRangeError as error:
            lost = [partition for partition in consumer.assignment() if partition in error.args[0]]
            for partition, end in (await consumer.end_offsets(lost)).items():
                consumer.seek(partition, end)
            return []
        for partition, records in fetched.items():
            self._positions[partition] = records[-1].offset + 1
            self._advanced = time.monotonic()
        return [record for records in fetched.values() for record in records]

    async def _probe(self, consumer: AIOKafkaConsumer) -> None:
        """Ask for the ends: shows whether the broker answers, how far behind we are, and a silent stall."""
        partitions = await topic_partitions(consumer, self._topics)
        if set(partitions) != set(consumer.assignment()):
            await self._assign(consumer, partitions)
        async with asyncio.timeout(self._settings.request_timeout_seconds):
            ends = await consumer.end_offsets(partitions) if partitions else {}
        self.lag_records = sum(max(0, end - self._positions.get(partition, end)) for partition, end in ends.items())
        self.connected = True
        self._answered = time.monotonic()
        if not self.lag_records:
            self._advanced = self._answered
        elif self._answered - self._advanced > self._settings.stall_timeout_seconds:
            raise TimeoutError(f"{self.lag_records} records to read and none came")

    async def _lost(self, error: Exception) -> None:
        if self.connected:
            _log.warning("stream lost, reconnecting", extra={"client_id": self._client_id, "error": repr(error)})
        self.connected = False
        await self._disconnect()
        await asyncio.sleep(RECONNECT_SECONDS)

    async def _disconnect(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_client(consumer)
