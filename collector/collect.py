"""Records to a batch: decode, recognise duplicates, and set aside what cannot be used."""

import time
from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from aiokafka import TopicPartition

from collector import usage
from collector.batch import Batch, HeartbeatRow
from collector.deadletter import DeadLetter
from collector.decode import Decoder
from collector.directory import Directory
from collector.duplicates import Position, ProducerKey, Verdict
from collector.source import witness_of
from collector.template import Decoded
from collector.validate import TimeLimits
from collector.walk import Worker
from collector.write import PositionRow
from fleetpulse.stream import heartbeat as heartbeats
from fleetpulse.stream.consumer import Record
from fleetpulse.stream.errors import (
    MalformedHeartbeatError,
    MessageError,
    OversizeMessageError,
    UnwritableMessageError,
)
from fleetpulse.stream.heartbeat import Heartbeat
from fleetpulse.stream.topics import HEARTBEATS, METRICS, USAGE
from fleetpulse.stream.usage import UsageRecord


@dataclass(slots=True)
class Read:
    """A record that could be used: whose it is, and which producer's which message."""

    worker: int
    producer: ProducerKey | None
    sequence: int | None
    heartbeat: Heartbeat | None


@dataclass(slots=True)
class Intake:
    """A round of records, decoded. ``resources`` refer to ``reads`` by number."""

    reads: list[Read | None] = field(default_factory=list)
    producers: set[ProducerKey] = field(default_factory=set)
    resources: list[Decoded] = field(default_factory=list)
    usage: list[UsageRecord] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    ends: dict[TopicPartition, tuple[int, str]] = field(default_factory=dict)  # next offset, witness
    messages: Counter[str] = field(default_factory=Counter)
    message_bytes: Counter[str] = field(default_factory=Counter)
    missing_identity: int = 0

    def refuse(self, record: Record, error: MessageError) -> None:
        """Make a dead letter of a record."""
        self.letters.append(DeadLetter(record, error.reason, str(error)))


def take_in(
    fetched: Iterable[tuple[TopicPartition, list[Record]]],
    decoder: Decoder,
    directory: Directory,
    message_bytes: int,
    usage_limits: TimeLimits,
    unwritable: Set[tuple[TopicPartition, int]] = frozenset(),
) -> Intake:
    """Decode a round of records. A record that cannot be used becomes a dead letter, its neighbours go on.

    ``unwritable`` are offsets of records that the database refused.
    """
    intake = Intake()
    metrics: list[Record] = []
    for partition, records in fetched:
        sizes = [len(record.value or b"") for record in records]
        intake.messages[partition.topic] += len(records)
        intake.message_bytes[partition.topic] += sum(sizes)
        intake.ends[partition] = (records[-1].offset + 1, witness_of(records[-1]))
        if max(sizes) > message_bytes or unwritable:
            records = _usable(records, partition, message_bytes, unwritable, intake)
        if partition.topic == METRICS.name:
            metrics += records
        elif partition.topic == USAGE.name:
            _read_usage(records, usage_limits, intake)
        else:
            _read_heartbeats(records, directory, intake)
    _read_metrics(metrics, decoder, directory, intake)
    return intake


def _usable(
    records: list[Record],
    partition: TopicPartition,
    message_bytes: int,
    unwritable: Set[tuple[TopicPartition, int]],
    intake: Intake,
) -> list[Record]:
    """Those that may be read; the others become dead letters."""
    usable = []
    for record in records:
        size = len(record.value or b"")
        if (partition, record.offset) in unwritable:
            intake.refuse(record, UnwritableMessageError("the database refused a value of it"))
        elif size > message_bytes:
            intake.refuse(record, OversizeMessageError(f"{size} bytes, more than the {message_bytes} allowed"))
        else:
            usable.append(record)
    return usable


def _read_metrics(records: list[Record], decoder: Decoder, directory: Directory, intake: Intake) -> None:
    contents = decoder.decode([record.value or b"" for record in records])
    first_number = len(intake.reads)
    reads: list[Read | None] = [None] * len(records)
    for decoded in contents.resources:
        worker = directory.worker(decoded.plan.worker)
        boot_id = decoded.plan.worker.boot_id
        producers: dict[int, ProducerKey] = {}
        for number, sequence in zip(decoded.messages, decoded.sequences(), strict=True):
            record, read = records[number], reads[number]
            if read is None:
                read = reads[number] = Read(worker, None, None, None)
            if sequence is not None and boot_id is not None and read.producer is None:
                producer = producers.get(record.partition)
                if producer is None:
                    producer = ProducerKey(worker, record.topic, record.partition, boot_id)
                    producers[record.partition] = producer
                    intake.producers.add(producer)
                read.producer, read.sequence = producer, sequence
        decoded.messages = [first_number + number for number in decoded.messages]
    intake.reads += reads
    intake.resources = contents.resources
    for number, problem in contents.problems.items():
        intake.refuse(records[number], problem)
    for number, count in contents.unidentified.items():
        intake.missing_identity += count
        if reads[number] is None:
            detail = "no resource has an attribute that identifies its worker"
            intake.letters.append(DeadLetter(records[number], "missing_identity", detail))


def _read_usage(records: list[Record], limits: TimeLimits, intake: Intake) -> None:
    for record in records:
        try:
            intake.usage.append(usage.read(record.value or b"", limits))
        except MessageError as error:
            intake.refuse(record, error)


def _read_heartbeats(records: list[Record], directory: Directory, intake: Intake) -> None:
    for record in records:
        try:
            read = _read_heartbeat(record, directory)
        except MessageError as error:
            intake.refuse(record, error)
        else:
            intake.reads.append(read)
            if read.producer is not None:
                intake.producers.add(read.producer)


def _read_heartbeat(record: Record, directory: Directory) -> Read:
    if record.topic != HEARTBEATS.name:
        raise MalformedHeartbeatError(f"unexpected topic {record.topic}")
    heartbeat = heartbeats.decode(record.value or b"")
    worker = directory.worker(
        Worker(heartbeat.worker_id, heartbeat.instance_id, heartbeat.host_name or "", heartbeat.boot_id)
    )
    producer = ProducerKey(worker, record.topic, record.partition, heartbeat.boot_id)
    return Read(worker, producer, heartbeat.sequence, heartbeat)


def fill(intake: Intake, directory: Directory, positions: dict[ProducerKey, Position]) -> tuple[Batch, list[Heartbeat]]:
    """The batch of a round: everything but duplicates. Also returns the heartbeats that were new.

    ``positions`` must hold what is stored of every producer heard; it is moved on.
    """
    batch = Batch(directory)
    received_unix_nano = time.time_ns()
    fresh: list[Heartbeat] = []
    duplicates: set[int] = set()
    for number, read in enumerate(intake.reads):
        if read is None:
            continue
        if _is_duplicate(read, positions, batch):
            duplicates.add(number)
        elif read.heartbeat is not None:
            batch.heartbeats.append(HeartbeatRow(read.worker, read.heartbeat, received_unix_nano))
            fresh.append(read.heartbeat)
    for decoded in intake.resources:
        new = [place for place, number in enumerate(decoded.messages) if number not in duplicates]
        if new:
            kept = decoded if len(new) == len(decoded.messages) else decoded.only(new)
            batch.add_metrics(kept, directory.references(kept.plan))
    return batch, fresh


def _is_duplicate(read: Read, positions: dict[ProducerKey, Position], batch: Batch) -> bool:
    """Judge a message by its sequence number and count what that tells."""
    if read.producer is None or read.sequence is None:
        return False
    verdict, left_out = positions[read.producer].judge(read.sequence)
    kind = "heartbeat" if read.heartbeat else "metrics"
    if left_out:
        batch.quality[read.worker, "vanished", kind] += left_out
    if verdict is not Verdict.NEW:
        batch.quality[read.worker, verdict.value, kind] += 1
    return verdict is Verdict.DUPLICATE


def position_rows(
    producers: Iterable[ProducerKey], positions: dict[ProducerKey, Position], directory: Directory
) -> list[PositionRow]:
    """What is to be stored of the producers heard."""
    return [
        (
            directory.worker_keys.one(key.worker),
            key.topic,
            key.partition,
            key.boot_id,
            positions[key].high_water,
            positions[key].window_bytes(),
        )
        for key in producers
    ]
