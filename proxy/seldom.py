"""Log records that clients can bring about: a few of each kind, however many there would be."""

import logging
import time
from typing import Final

SECONDS: Final = 10.0
# Kinds are messages before their values are put in; more than this many at a time are not told apart.
_KINDS: Final = 100


class Seldom(logging.Filter):
    """Lets one record of a kind through in SECONDS, with the number of those left out before it."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is told."""
        kind, now = str(record.msg), time.monotonic()
        at, left_out = self._told.get(kind, (float("-inf"), 0))
        if now - at < SECONDS:
            self._told[kind] = (at, left_out + 1)
            return False
        if len(self._told) >= _KINDS:
            self._told.clear()
        self._told[kind] = (now, 0)
        if left_out:
            record.__dict__["left_out"] = left_out
        return True
