"""Pauses that grow with each failure, and are never the same for two."""

import random
from typing import Final

SPREAD: Final = 0.1


def pause_seconds(attempts: int, first_seconds: float, most_seconds: float) -> float:
    """The pause after the ``attempts``-th failure in a row: the first one doubled each time, up to the longest."""
    doublings = min(max(attempts - 1, 0), 32)
    return jittered(min(first_seconds * 2.0**doublings, most_seconds))


def jittered(seconds: float) -> float:
    """Up to a tenth more or less, so that what began together does not stay together."""
    return seconds * random.uniform(1 - SPREAD, 1 + SPREAD)
