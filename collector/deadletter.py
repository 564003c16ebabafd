"""Messages that cannot be used, kept as they came, with the reason."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fleetpulse.stream.consumer import Record
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import DEADLETTER

# A broker's default largest message is 1 MiB, headers included.
VALUE_BYTES: Final = 900_000
DETAIL_BYTES: Final = 500
LOGGED_CHARACTERS: Final = 200
# One by one each would wait for the broker, and a sender of nothing but junk would hold up everybody else.
TOGETHER: Final = 200


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused message: ``reason`` is one of few words, ``detail`` says more."""

    record: Record
    reason: str
    detail: str

    def told(self) -> dict[str, object]:
        """For the log: where it was and what is wrong with it."""
        record = self.record
        return {
            "reason": self.reason,
            "detail": self.detail[:LOGGED_CHARACTERS],
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
        }


def by_reason(letters: Iterable[DeadLetter]) -> dict[str, list[DeadLetter]]:
    """Letters of the same reason together."""
    found: dict[str, list[DeadLetter]] = {}
    for letter in letters:
        found.setdefault(letter.reason, []).append(letter)
    return found


async def bury(producer: StreamProducer, letters: Sequence[DeadLetter]) -> None:
    """Send messages to the dead-letter topic; returns when the broker has them all.

    After a crash a message may be sent again, as its offset was not yet behind us: never lost, at times twice.
    Raises NotDeliveredError.
    """
    for start in range(0, len(letters), TOGETHER):
        sent = (_send(producer, letter) for letter in letters[start : start + TOGETHER])
        # All to the end, so that none is under way when the caller goes back to where it was.
        for problem in await asyncio.gather(*sent, return_exceptions=True):
            if problem is not None:
                raise problem


async def _send(producer: StreamProducer, letter: DeadLetter) -> None:
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
