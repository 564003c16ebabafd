"""Ticks at fixed times: a late tick does not move the ones after it."""

import asyncio
from collections.abc import AsyncIterator


async def ticks(interval_seconds: float, stop: asyncio.Event) -> AsyncIterator[None]:
    """Yield at once and then at every multiple of the interval, until ``stop`` is set.

    By the monotonic clock. Ticks that were missed (the host slept, the last turn took too long) are left out rather
    than made up for in a burst.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    turn = 0
    while not stop.is_set():
        yield
        turn = max(turn + 1, int((loop.time() - began) / interval_seconds))
        wait_seconds = began + turn * interval_seconds - loop.time()
        try:
            async with asyncio.timeout(max(wait_seconds, 0.0)):
                await stop.wait()
        except TimeoutError:
            continue
