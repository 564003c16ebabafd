"""Principals that were looked up, for a short while."""

import time
from collections import OrderedDict
from typing import Final

from control.access.principal import Principal

MOST_KEPT: Final = 10_000


class Cache:
    """Principals by the full digest of a key, or by the id of a session; None for those that nobody knows.

    An answer of the database that was asked for before forget() may be out of date when it comes: put() takes the
    ``generation`` from before the question and drops such an answer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._kept: OrderedDict[bytes, tuple[float, Principal | None]] = OrderedDict()
        self.generation = 0

    def get(self, key: bytes) -> tuple[bool, Principal | None]:
        """Whether it is known, and what."""
        found = self._kept.get(key)
        if found is None or time.monotonic() >= found[0]:
            return False, None
        return True, found[1]

    def put(self, key: bytes, principal: Principal | None, generation: int) -> None:
        """Keep what the database said."""
        if generation != self.generation:
            return
        self._kept[key] = time.monotonic() + self._seconds, principal
        self._kept.move_to_end(key)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)

    def forget(self) -> None:
        """Something changed: look everything up anew."""
        self.generation += 1
        self._kept.clear()
