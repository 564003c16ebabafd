"""Reading the partitions this collector owns, from where the database says."""

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from collector.offsets import Claim
from fleetpulse.settings import StreamSettings
from fleetpulse.stream.client import start_client, stop_client
from fleetpulse.stream.consumer import Record, make_consumer, topic_partitions

PROBE_SECONDS: Final = 2.0


class StreamStalledError(Exception):
    """There are records to read and none arrive, or the broker does not answer: the client must be rebuilt."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A claim whose offset cannot be read: where reading goes on instead, and why."""

    claim: Claim
    to_offset: int
    reason: str


class Source:
    """A consumer under manual assignment.

    aiokafka can go silent after a broker's restart without an error; whoever reads compares its position with the
    partition's end, and gives up the client when records exist and none come.
    """

    def __init__(self, settings: StreamSettings, client_id: str, topics: Sequence[str]) -> None:
        self._settings = settings
        self._client_id = client_id
        self._topics = tuple(topics)
        self._consumer: AIOKafkaConsumer | None = None
        self._positions: dict[TopicPartition, int] = {}
        # The record before the position must be the one written last: its timestamp, by partition.
        self._witnesses: dict[TopicPartition, Claim] = {}
        self._starts: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._advanced = self._probed = 0.0

    @property
    def _client(self) -> AIOKafkaConsumer:
        assert self._consumer is not None, "connect() first"
        return self._consumer

    async def connect(self) -> None:
        """Raises KafkaError, OSError or TimeoutError when no broker answers in time."""
        consumer = make_consumer(self._settings, self._client_id)
        try:
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                await start_client(consumer)
        except BaseException:
            await stop_client(consumer)
            raise
        self._consumer = consumer
        self._advanced = self._probed = time.monotonic()

    async def close(self) -> None:
        """Disconnect; positions are forgotten."""
        consumer, self._consumer = self._consumer, None
        self._positions.clear()
        self._witnesses.clear()
        if consumer is not None:
            await stop_client(consumer)

    async def partitions(self) -> list[TopicPartition]:
        """All partitions there are to read."""
        async with asyncio.timeout(self._settings.request_timeout_seconds):
            return await topic_partitions(self._client, self._topics)

    async def assign(self, claims: Collection[Claim]) -> list[Gap]:
        """Read exactly these partitions, new ones from their claim's offset; returns claims that cannot be."""
        partitions = [claim.partition for claim in claims]
        self._client.assign(partitions)
        for kept in (self._positions, self._witnesses, self._ends):
            for gone in set(kept) - set(partitions):
                del kept[gone]
        if not partitions:
            return []
        async with asyncio.timeout(self._settings.request_timeout_seconds):
            self._starts = await self._client.beginning_offsets(partitions)
            self._ends = await self._client.end_offsets(partitions)
        gaps = []
        for claim in claims:
            partition = claim.partition
            if partition in self._positions:
                self._client.seek(partition, self._positions[partition])
                continue
            gap = self._seek(claim, self._starts[partition], self._ends[partition])
            if gap is not None:
                gaps.append(gap)
        return gaps

    def _seek(self, claim: Claim, start: int, end: int) -> Gap | None:
        partition, offset = claim.partition, claim.next_offset
        self._witnesses.pop(partition, None)
        if offset is None:
            self._go(partition, start)
        elif offset < start:
            self._go(partition, start)
            return Gap(claim, start, "expired")
        elif offset > end:
            self._go(partition, start)
            return Gap(claim, start, "rewound")
        elif claim.witness and offset > start:
            self._go(partition, offset - 1)
            self._witnesses[partition] = claim
        else:
            self._go(partition, offset)
        return None

    def _go(self, partition: TopicPartition, offset: int) -> None:
        self._positions[partition] = offset
        self._client.seek(partition, offset)

    def restart(self, partition: TopicPartition, offset: int) -> None:
        """Go on from another offset."""
        self._go(partition, offset)

    async def fetch(self, timeout_seconds: float, most: int) -> tuple[dict[TopicPartition, list[Record]], list[Gap]]:
        """Records that are there, at most ``most``, a partition's in order; waits for the first one up to the
        timeout. Gaps are claims whose offsets turned out to mean something else.

        Raises StreamStalledError, KafkaError, OSError, TimeoutError.
        """
        if not self._positions:
            await asyncio.sleep(timeout_seconds)
            return {}, []
        try:
            fetched = await self._client.getmany(timeout_ms=int(timeout_seconds * 1000), max_records=most)
        except OffsetOutOfRangeError as error:
            # Expired or rewound while being read: look again at where the partitions start and end.
            raise StreamStalledError(f"offsets out of range: {error.args[0]}") from error
        records: dict[TopicPartition, list[Record]] = {}
        gaps: list[Gap] = []
        for partition, found in fetched.items():
            rest = self._after_witness(partition, found, gaps)
            if rest:
                self._positions[partition] = rest[-1].offset + 1
                records[partition] = rest
        now = time.monotonic()
        if fetched:
            self._advanced = now
        if now - self._probed >= PROBE_SECONDS:
            await self._probe()
        return records, gaps

    def _after_witness(self, partition: TopicPartition, found: list[Record], gaps: list[Gap]) -> list[Record]:
        claim = self._witnesses.pop(partition, None)
        if claim is None:
            return found
        first = found[0]
        if first.offset + 1 != claim.next_offset or witness_of(first) == claim.witness:
            # Right, or gone by retention between the look at the start offset and the fetch.
            rest = [record for record in found if record.offset >= (claim.next_offset or 0)]
            self._positions[partition] = found[-1].offset + 1
            return rest
        gaps.append(Gap(claim, self._starts[partition], "rewound"))
        return []

    async def _probe(self) -> None:
        self._probed = time.monotonic()
        async with asyncio.timeout(self._settings.request_timeout_seconds):
            self._ends = await self._client.end_offsets(list(self._positions))
        if not self.lag_records():
            self._advanced = self._probed
        elif self._probed - self._advanced > self._settings.stall_timeout_seconds:
            raise StreamStalledError(f"{self.lag_records()} records to read and none came")

    def lag_records(self) -> int:
        """Records that exist and were not read, as of the last probe."""
        return sum(max(0, end - self._positions.get(partition, end)) for partition, end in self._ends.items())

    def lag_by_topic(self) -> dict[str, int]:
        """The same for each topic."""
        lag = dict.fromkeys(self._topics, 0)
        for partition, end in self._ends.items():
            lag[partition.topic] += max(0, end - self._positions.get(partition, end))
        return lag


def witness_of(record: Record) -> str:
    """What tells a record from another one at the same offset."""
    return f"{record.timestamp}:{len(record.value or b'')}"
