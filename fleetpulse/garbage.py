"""Short pauses of Python's garbage collector in a process that holds much for long.

A full collection looks at every object there is: a collector that knows a thousand workers stood still for a tenth of a
second each time, with all heartbeats of that time. What has outlived one is not looked at again for an hour.
"""

import gc
import time
from collections.abc import Mapping
from typing import Final

# Cycles that are dropped later go with the full collection after this time.
_WHOLE_SECONDS: Final = 3600.0
_FULL: Final = 2


def keep_collections_short() -> None:
    """From now on, in this process."""
    whole_at = time.monotonic() + _WHOLE_SECONDS

    def collected(phase: str, info: Mapping[str, int]) -> None:
        nonlocal whole_at
        if phase != "stop" or info["generation"] != _FULL:
            return
        now = time.monotonic()
        if now < whole_at:
            gc.freeze()
        else:
            gc.unfreeze()
            whole_at = now + _WHOLE_SECONDS

    gc.callbacks.append(collected)
