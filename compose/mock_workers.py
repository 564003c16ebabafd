"""``python mock_workers.py [N]``: have control deploy N workers at the mock cloud, unless they are there already.

The same as those of ``fleetpulse up``: the first reads this machine, the others have simulated GPUs and a mock engine.
Waits for control, and ends with exit status 1 when the workers are not ready in time.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp

from fleetpulse.client.control import ControlClient
from fleetpulse.local.deployment import deploy, is_offered, unready
from fleetpulse.settings import ClientSettings, load

WORKERS = 3
WAIT_SECONDS = 180.0
PAUSE_SECONDS = 1.0

Answer = TypeVar("Answer")


async def main(workers: int) -> int:
    """Deploy, wait until all are ready, and say so."""
    settings = load(ClientSettings)
    if settings.url is None or settings.api_key is None:
        print("set FLEETPULSE_CONTROL_URL and FLEETPULSE_CONTROL_API_KEY", file=sys.stderr)
        return 2
    deadline = time.monotonic() + WAIT_SECONDS
    async with ControlClient.connected(settings.url, settings.api_key.get_secret_value()) as client:
        try:
            await until(deadline, lambda: is_offered(client), "control to offer the mock cloud's machines")
            there = await until(deadline, lambda: deploy(client, workers), "the deployments")
            await until(deadline, lambda: none_waits(client), "the workers to be ready")
        except TimeoutError as error:
            print(error, file=sys.stderr)
            return 1
    print("ready:", ", ".join(f"{each.name} ({each.instance_id})" for each in there))
    return 0


async def none_waits(client: ControlClient) -> bool:
    """Whether every worker is ready."""
    return not await unready(client)


async def until(deadline: float, ask: Callable[[], Awaitable[Answer]], what: str) -> Answer:
    """The first answer that is not empty. Raises TimeoutError, with the last reason, at the deadline."""
    reason = ""
    while time.monotonic() < deadline:
        try:
            if answer := await ask():
                return answer
        except (aiohttp.ClientError, OSError) as error:
            reason = f": {error or type(error).__name__}"
        await asyncio.sleep(PAUSE_SECONDS)
    raise TimeoutError(f"waited {WAIT_SECONDS:.0f} s in vain for {what}{reason}")


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else WORKERS)))
