"""Failed logins, counted so that passwords cannot be tried out."""

import time
from collections import OrderedDict, deque
from typing import Final

# Who is attacked with made-up names must not run out of memory.
MOST_KEPT: Final = 10_000


class Attempts:
    """Failures by key in a sliding window; a key with too many has to wait."""

    def __init__(self, most: int, window_seconds: float) -> None:
        self._most = most
        self._window_seconds = window_seconds
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_seconds(self, key: str, factor: int = 1) -> float:
        """How long the key has to wait; 0 when it may try. ``factor`` allows so many times the failures."""
        failures = self._failures.get(key)
        if failures is None:
            return 0.0
        horizon = time.monotonic() - self._window_seconds
        while failures and failures[0] <= horizon:
            failures.popleft()
        surplus = len(failures) - self._most * factor
        return failures[surplus] - horizon if surplus >= 0 else 0.0

    def failed(self, key: str) -> None:
        """Count a failure."""
        self._failures.setdefault(key, deque()).append(time.monotonic())
        self._failures.move_to_end(key)
        while len(self._failures) > MOST_KEPT:
            self._failures.popitem(last=False)

    def withdraw(self, key: str) -> None:
        """Take the newest failure back: it was none after all."""
        failures = self._failures.get(key)
        if failures:
            failures.pop()

    def forget(self, key: str) -> None:
        """Forget the key's failures."""
        self._failures.pop(key, None)
