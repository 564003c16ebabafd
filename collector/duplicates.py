"""Recognising what a producer sent twice.

A producer that does not hear back resends, and the broker may have both. Each of our messages carries its worker's
boot and a sequence number; the collector keeps, for each boot and partition, the highest number seen and which of the
numbers just below it were seen (the anti-replay window of RFC 4303, section 3.4.3). Positions are stored in the
transaction that stores the rows. They are kept by partition because a partition has one writer at a time, and because
partitions are read at their own pace: a message that is old in one is not a duplicate of anything in another.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

WINDOW: Final = 256
_WINDOW_MASK: Final = (1 << WINDOW) - 1


class Verdict(Enum):
    """What a sequence number says about its message."""

    NEW = "new"
    OUT_OF_ORDER = "out_of_order"
    DUPLICATE = "duplicate"


class ProducerKey(NamedTuple):
    """A worker's boot in one partition of one topic."""

    worker: int
    topic: str
    partition: int
    boot_id: str


@dataclass(slots=True)
class Position:
    """``seen`` has bit ``n`` set when ``high_water - n`` was seen."""

    high_water: int = 0
    seen: int = 0

    def judge(self, sequence: int) -> tuple[Verdict, int]:
        """Take note of a number. Returns the verdict and how many numbers it left out above the highest so far.

        Numbers out of the window below are called duplicates: a producer sends in order, so what is that old was
        resent.
        """
        ahead = sequence - self.high_water
        if ahead > 0:
            first = self.high_water == 0
            self.seen = ((self.seen << ahead) | 1) & _WINDOW_MASK if ahead < WINDOW else 1
            self.high_water = sequence
            return Verdict.NEW, 0 if first else ahead - 1
        bit = 1 << -ahead
        if -ahead >= WINDOW or self.seen & bit:
            return Verdict.DUPLICATE, 0
        self.seen |= bit
        return Verdict.OUT_OF_ORDER, 0

    def window_bytes(self) -> bytes:
        """The window as it is stored, lowest bits first."""
        return self.seen.to_bytes(WINDOW // 8, "little")


def stored_position(high_water: int, window: bytes) -> Position:
    """A position as it was stored."""
    return Position(high_water, int.from_bytes(window, "little"))
