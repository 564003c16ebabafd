"""Messages that cannot be used, kept as they came, with the reason."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fleetpulse.stream.consumer import Record
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import DEADLETTER

# A broker's default largest message is 1 MiB, headers included.
VALUE_BYTES: Final = 900_000
DETAIL_BYTES: Final = 500


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused message: ``reason`` is one of few words, ``detail`` says more."""

    record: Record
    reason: str
    detail: str


async def bury(producer: StreamProducer, letters: Iterable[DeadLetter]) -> None:
    """Send messages to the dead-letter topic; returns when the broker has them all.

    After a crash a message may be sent again, as its offset was not yet behind us: never lost, at times twice.
    Raises NotDeliveredError.
    """
    for letter in letters:
        record = letter.record
        value = record.value or b""
        headers = [
            ("reason", letter.reason.encode()),
            ("detail", letter.detail.encode(errors="replace")[:DETAIL_BYTES]),
            ("topic", record.topic.encode()),
            ("partition", str(record.partition).encode()),
            ("offset", str(record.offset).encode()),
            ("timestamp_ms", str(record.timestamp).encode()),
            ("refused_unix_seconds", f"{time.time():.3f}".encode()),
        ]
        if len(value) > VALUE_BYTES:
            headers.append(("truncated_from_bytes", str(len(value)).encode()))
        await producer.send(DEADLETTER.name, value[:VALUE_BYTES], record.key, headers)
