"""What the services of the stack say that they lack."""

import asyncio
from typing import Final

import aiohttp

_TIMEOUT_SECONDS: Final = 5.0


async def lacking(urls: dict[str, str]) -> list[str]:
    """What each service says it lacks at ``/readyz``, one line each; a service that does not answer says that."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)) as session:
        told = await asyncio.gather(*(_readiness(session, name, url) for name, url in urls.items()))
    return [line for line in told if line]


async def _readiness(session: aiohttp.ClientSession, name: str, url: str) -> str:
    try:
        async with session.get(f"{url}/readyz") as response:
            missing = (await response.json()).get("missing", {})
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return f"{name} does not answer ({error or type(error).__name__})"
    return f"{name}: {'; '.join(f'{part}: {reason}' for part, reason in missing.items())}" if missing else ""
