"""Records to a batch: decode, recognise duplicates, and set aside what cannot be used."""

import time
from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from aiokafka import TopicPartition

from collector.batch import Batch, HeartbeatRow
from collector.deadletter import DeadLetter
from collector.decode import Decoder
from collector.directory import Directory
from collector.duplicates import Position, ProducerKey, Verdict
from collector.source import witness_of
from collector.template import Decoded
from collector.walk import Worker
from collector.write import PositionRow
from fleetpulse.stream import heartbeat as heartbeats
from fleetpulse.stream.consumer import Record
from fleetpulse.stream.errors import (
    MalformedHeartbeatError,
    MalformedMetricsError,
    MessageError,
    OversizeMessageError,
    UnwritableMessageError,
)
from fleetpulse.stream.heartbeat import Heartbeat
from fleetpulse.stream.topics import HEARTBEATS, METRICS


@dataclass(slots=True)
class Read:
    """A record after decoding: metrics resources or a heartbeat, and which producer's which message it is."""

    worker: int
    resources: list[Decoded]
    heartbeat: Heartbeat | None
    refused: dict[str, int]
    producer: ProducerKey | None
    sequence: int | None


@dataclass(slots=True)
class Intake:
    """A round of records, decoded."""

    reads: list[Read] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    ends: dict[TopicPartition, tuple[int, str]] = field(default_factory=dict)  # next offset, witness
    messages: Counter[str] = field(default_factory=Counter)
    message_bytes: Counter[str] = field(default_factory=Counter)
    missing_identity: int = 0

    @property
    def producers(self) -> set[ProducerKey]:
        """Producers heard in this round."""
        return {read.producer for read in self.reads if read.producer is not None}


def take_in(
    fetched: Iterable[tuple[TopicPartition, list[Record]]],
    decoder: Decoder,
    directory: Directory,
    message_bytes: int,
    unwritable: Set[tuple[TopicPartition, int]] = frozenset(),
) -> Intake:
    """Decode a round of records. A record that cannot be used becomes a dead letter, its neighbours go on.

    ``unwritable`` are offsets of records that the database refused.
    """
    intake = Intake()
    for partition, records in fetched:
        for record in records:
            value = record.value or b""
            intake.messages[record.topic] += 1
            intake.message_bytes[record.topic] += len(value)
            try:
                if (partition, record.offset) in unwritable:
                    raise UnwritableMessageError("the database refused a value of it")
                if len(value) > message_bytes:
                    raise OversizeMessageError(f"{len(value)} bytes, more than the {message_bytes} allowed")
                if record.topic == METRICS.name:
                    _read_metrics(record, value, decoder, directory, intake)
                else:
                    _read_heartbeat(record, value, directory, intake)
            except MessageError as error:
                intake.letters.append(DeadLetter(record, error.reason, str(error)))
        last = records[-1]
        intake.ends[partition] = (last.offset + 1, witness_of(last))
    return intake


def _read_metrics(record: Record, value: bytes, decoder: Decoder, directory: Directory, intake: Intake) -> None:
    if not value:
        raise MalformedMetricsError("an empty message")
    content = decoder.decode(value)
    if not content.resources:
        intake.letters.append(
            DeadLetter(record, "missing_identity", "no resource has an attribute that identifies its worker")
        )
        return
    intake.missing_identity += content.refused.pop("missing_identity", 0)
    first = content.resources[0].plan.worker
    worker = directory.worker(first)
    producer = sequence = None
    for decoded in content.resources:
        boot_id = decoded.plan.worker.boot_id
        if boot_id is not None and decoded.sequence is not None:
            sequence = decoded.sequence
            producer = ProducerKey(directory.worker(decoded.plan.worker), record.topic, record.partition, boot_id)
            break
    intake.reads.append(Read(worker, content.resources, None, content.refused, producer, sequence))


def _read_heartbeat(record: Record, value: bytes, directory: Directory, intake: Intake) -> None:
    if record.topic != HEARTBEATS.name:
        raise MalformedHeartbeatError(f"unexpected topic {record.topic}")
    heartbeat = heartbeats.decode(value)
    worker = directory.worker(
        Worker(heartbeat.worker_id, heartbeat.instance_id, heartbeat.host_name or "", heartbeat.boot_id)
    )
    producer = ProducerKey(worker, record.topic, record.partition, heartbeat.boot_id)
    intake.reads.append(Read(worker, [], heartbeat, {}, producer, heartbeat.sequence))


def fill(intake: Intake, directory: Directory, positions: dict[ProducerKey, Position]) -> tuple[Batch, list[Heartbeat]]:
    """The batch of a round: everything but duplicates. Also returns the heartbeats that were new.

    ``positions`` must hold what is stored of every producer heard; it is moved on.
    """
    batch = Batch(directory)
    received_unix_nano = time.time_ns()
    fresh: list[Heartbeat] = []
    for read in intake.reads:
        if read.producer is not None and read.sequence is not None:
            verdict, left_out = positions[read.producer].judge(read.sequence)
            kind = "heartbeat" if read.heartbeat else "metrics"
            if left_out:
                batch.quality[read.worker, "vanished", kind] += left_out
            if verdict is not Verdict.NEW:
                batch.quality[read.worker, verdict.value, kind] += 1
            if verdict is Verdict.DUPLICATE:
                continue
        if read.refused:
            batch.refuse(read.worker, read.refused)
        for decoded in read.resources:
            batch.add_metrics(decoded, directory.references(decoded.plan))
        if read.heartbeat is not None:
            batch.heartbeats.append(HeartbeatRow(read.worker, read.heartbeat, received_unix_nano))
            fresh.append(read.heartbeat)
    return batch, fresh


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
