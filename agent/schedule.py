"""Ticks at fixed times: a late tick does not move the ones after it."""

import asyncio
from collections.abc import AsyncIterator


async def ticks(interval_seconds: float, stop: asyncio.Event, first_after_seconds: float = 0.0) -> AsyncIterator[None]:
    """Yield after ``first_after_seconds`` and then at every multiple of the interval, until ``stop`` is set.

    By the monotonic clock. Ticks that were missed (the host slept, the last turn took too long) are left out rather
    than made up for in a burst.
    """
    loop = asyncio.get_running_loop()
    began = loop.time() + first_after_seconds
    turn = 0
    while not await _set_by(stop, began + turn * interval_seconds):
        yield
        turn = max(turn + 1, int((loop.time() - began) / interval_seconds))


async def _set_by(stop: asyncio.Event, deadline: float) -> bool:
    """Wait for the event until a time of the loop's clock; whether it is set."""
    try:
        async with asyncio.timeout_at(deadline):
            await stop.wait()
    except TimeoutError:
        pass
    return stop.is_set()
