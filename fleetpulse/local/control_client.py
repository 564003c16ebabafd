"""What ``fleetpulse up`` asks of control's API."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, Self

import aiohttp

_TIMEOUT_SECONDS: Final = 5.0
# Activity is asked for this far back, which covers the slowest sensible start.
_WINDOW_SECONDS: Final = 300


class ControlClient:
    """Reads the API. Every method raises OSError, TimeoutError or aiohttp.ClientError while control is away."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str, admin_key: str) -> AsyncIterator[Self]:
        """A client for as long as the block runs."""
        async with aiohttp.ClientSession(
            url,
            headers={"Authorization": f"Bearer {admin_key}"},
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS),
            raise_for_status=True,
        ) as session:
            yield cls(session)

    async def workers(self) -> dict[str, Any]:
        """The answer of ``/workers``."""
        async with self._session.get("/workers") as response:
            answer: dict[str, Any] = await response.json()
            return answer

    async def activity(self, family: str, since: datetime) -> list[dict[str, Any]]:
        """Raw rows of ``gpu``, ``system`` or ``engine`` sampled at or after ``since``."""
        query = {"window_s": str(_WINDOW_SECONDS), "granularity": "second"}
        async with self._session.get(f"/{family}/activity", params=query) as response:
            rows: Sequence[dict[str, Any]] = (await response.json())["rows"]
        return [row for row in rows if datetime.fromisoformat(row["time"]) >= since]


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
