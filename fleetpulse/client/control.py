"""A client of control's API."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, Self

import aiohttp

_TIMEOUT_SECONDS: Final = 10.0
# Activity is asked for this far back, which covers the slowest sensible start.
_WINDOW_SECONDS: Final = 300
_PAGE: Final = 1_000


class RefusedError(aiohttp.ClientError):
    """Control answered, but not with what was asked for; the message is its reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class ControlClient:
    """Asks the API.

    Every method raises RefusedError when control refuses, and OSError, TimeoutError or another aiohttp.ClientError
    while it is away.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str, key: str) -> AsyncIterator[Self]:
        """A client for as long as the block runs."""
        async with aiohttp.ClientSession(
            url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS),
        ) as session:
            yield cls(session)

    async def get(self, path: str, query: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
        """The answer to a GET."""
        return await self._ask("GET", path, params=list(query))

    async def post(
        self, path: str, body: Mapping[str, Any] | None = None, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """The answer to a POST."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return await self._ask("POST", path, json=body, headers=headers)

    async def delete(self, path: str) -> None:
        """A DELETE, which answers nothing."""
        async with self._session.delete(path) as response:
            if not response.ok:
                raise RefusedError(response.status, await _reason(response))

    async def all(self, path: str, name: str, query: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]]:
        """Every element of a list that is answered in parts; ``name`` is the list's field."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            place = [("cursor", cursor)] if cursor else []
            part = await self.get(path, [*query, ("limit", str(_PAGE)), *place])
            found += part[name]
            cursor = part["next_cursor"]
            if cursor is None:
                return found

    async def workers(self) -> dict[str, Any]:
        """The answer of ``/workers``."""
        return await self.get("/workers")

    async def activity(self, family: str, since: datetime) -> list[dict[str, Any]]:
        """Raw rows of ``gpu``, ``system`` or ``engine`` sampled at or after ``since``."""
        query = [("window_s", str(_WINDOW_SECONDS)), ("granularity", "second")]
        rows: Sequence[dict[str, Any]] = (await self.get(f"/{family}/activity", query))["rows"]
        return [row for row in rows if datetime.fromisoformat(row["time"]) >= since]

    async def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        async with self._session.request(method, path, **options) as response:
            if not response.ok:
                raise RefusedError(response.status, await _reason(response))
            answer: dict[str, Any] = await response.json()
            return answer


async def _reason(response: aiohttp.ClientResponse) -> str:
    """What the problem says; whatever answered may not have been control."""
    try:
        problem = await response.json(content_type=None)
        return str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        said = f"{response.status} {response.reason}"
        return f"{said}, which is not how control answers: is {response.url.origin()} control?"
