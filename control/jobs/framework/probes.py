"""Asking a machine whether it answers, by HTTP or SSH, within a time limit; results are used again for a moment."""

import asyncio
import contextlib
import errno
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp

from fleetpulse.settings import JobSettings

BODY_BYTES: Final = 65_536
CACHED_RESULTS: Final = 20_000


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What came of a probe. ``detail`` is for people and stays the same while nothing changes."""

    target: str
    succeeded: bool
    detail: str
    status: int | None = None
    refused: bool = False
    """The host answered that nobody listens: the process is gone, and no overloaded network the reason."""
    body: bytes = b""

    @property
    def answered(self) -> bool:
        """Whether somebody was there, whatever they said."""
        return self.status is not None or self.succeeded


class Probes:
    """Probes that know their recent results."""

    def __init__(self, settings: JobSettings, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._timeout_seconds = settings.probe_timeout_seconds
        self._cache_seconds = settings.probe_cache_seconds
        key = settings.engine_api_key
        self._engine_headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key is not None else {}
        self._results: dict[str, tuple[float, ProbeResult]] = {}

    async def http(self, url: str, timeout_seconds: float | None = None) -> ProbeResult:
        """Whether a GET is answered with 200."""
        timeout = timeout_seconds or self._timeout_seconds
        return await self._cached(url, lambda: self._get(url, timeout, {}))

    async def engine(self, url: str) -> ProbeResult:
        """The same, with the engines' key."""
        return await self._cached(url, lambda: self._get(url, self._timeout_seconds, self._engine_headers))

    async def ssh(self, host: str, port: int) -> ProbeResult:
        """Whether an SSH server greets us."""
        target = f"ssh://{host}:{port}"
        return await self._cached(target, lambda: self._greet(target, host, port))

    async def _cached(self, target: str, ask: Callable[[], Awaitable[ProbeResult]]) -> ProbeResult:
        found = self._results.get(target)
        if found is not None and time.monotonic() - found[0] < self._cache_seconds:
            return found[1]
        result = await ask()
        if len(self._results) >= CACHED_RESULTS:
            self._results.clear()
        self._results[target] = time.monotonic(), result
        return result

    async def _get(self, url: str, timeout: float, headers: Mapping[str, str]) -> ProbeResult:
        try:
            async with (
                asyncio.timeout(timeout),
                self._session.get(url, headers=headers, allow_redirects=False) as answer,
            ):
                body = await answer.content.read(BODY_BYTES)
                return ProbeResult(url, answer.status == 200, f"answered {answer.status}", answer.status, body=body)
        except TimeoutError:
            return ProbeResult(url, False, f"no answer within {timeout:g} s")
        except aiohttp.ClientConnectorError as error:
            return _failed(url, error.os_error)
        except (aiohttp.ClientError, ValueError, OSError) as error:
            return ProbeResult(url, False, f"no HTTP answer ({type(error).__name__})")

    async def _greet(self, target: str, host: str, port: int) -> ProbeResult:
        writer = None
        try:
            async with asyncio.timeout(self._timeout_seconds):
                reader, writer = await asyncio.open_connection(host, port)
                greeting = await reader.read(8)
        except TimeoutError:
            return ProbeResult(target, False, f"no answer within {self._timeout_seconds:g} s")
        except OSError as error:
            return _failed(target, error)
        finally:
            if writer is not None:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        is_ssh = greeting.startswith(b"SSH-")
        return ProbeResult(target, is_ssh, "an SSH server answered" if is_ssh else "something else than SSH answered")


def _failed(target: str, error: OSError) -> ProbeResult:
    if error.errno == errno.ECONNREFUSED:
        return ProbeResult(target, False, "connection refused", refused=True)
    return ProbeResult(target, False, f"cannot connect ({errno.errorcode.get(error.errno or 0, type(error).__name__)})")
