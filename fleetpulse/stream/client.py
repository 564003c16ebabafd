"""How any client of ours reaches the brokers, and leaves them."""

import asyncio
import ssl
from collections.abc import Coroutine
from typing import Any, Final, Protocol

from aiokafka.helpers import create_ssl_context

from fleetpulse.settings import StreamSettings
from fleetpulse.telemetry import logger

_log = logger(__name__)

# A client's stop() flushes and says goodbye, and would wait for a broker that is gone.
STOP_SECONDS: Final = 2.0


class Startable(Protocol):
    """An aiokafka producer or consumer."""

    async def start(self) -> None:
        """Connect."""


class Stoppable(Protocol):
    """An aiokafka producer or consumer."""

    async def stop(self) -> None:
        """Flush and disconnect."""


async def start_client(client: Startable) -> None:
    """Start a client. A cancellation waits, within STOP_SECONDS: aiokafka, cut off, leaves open the connection that it
    was just making, and nobody can close that one any more."""
    starting = asyncio.create_task(client.start(), name="kafka-start")
    try:
        await asyncio.shield(starting)
    finally:
        if not starting.done():
            await _whole(_end_in_time(starting))
        if not starting.cancelled():
            starting.exception()


async def stop_client(client: Stoppable) -> None:
    """Stop a client whose broker may be gone, within STOP_SECONDS; a cancellation waits for that, however often it
    comes: what would be left open, nobody closes any more."""
    await _whole(_stop(client))


async def _stop(client: Stoppable) -> None:
    # In a task of its own: aiokafka cancels its own tasks while stopping and at times lets that cancellation out, which
    # must not be taken for ours.
    stopping = asyncio.create_task(client.stop(), name="kafka-stop")
    await _end_in_time(stopping)
    if stopping.cancelled() or stopping.exception() is not None:
        problem = "cancelled" if stopping.cancelled() else repr(stopping.exception())
        _log.debug("client did not stop cleanly", extra={"error": problem})
        inner = getattr(client, "_client", None) or getattr(client, "client", None)
        if inner is not None:
            await inner.close()


async def _end_in_time(task: "asyncio.Task[None]") -> None:
    """Wait for a task, but no longer than STOP_SECONDS."""
    await asyncio.wait({task}, timeout=STOP_SECONDS)
    task.cancel()
    await asyncio.wait({task})


async def _whole(work: Coroutine[Any, Any, None]) -> None:
    """Do work of bounded time to its end; a cancellation of the caller is passed on afterwards."""
    task = asyncio.create_task(work, name="kafka-whole")
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is not None:
        raise cancellation
    task.result()


def connection_options(settings: StreamSettings, client_id: str) -> dict[str, Any]:
    """Keyword arguments that every aiokafka client takes."""
    return {
        "bootstrap_servers": settings.bootstrap,
        "client_id": client_id,
        "request_timeout_ms": int(settings.request_timeout_seconds * 1000),
        # A broker that came back on another address is found within this time.
        "metadata_max_age_ms": 30_000,
        "retry_backoff_ms": 100,
    } | _security(settings)


def _security(settings: StreamSettings) -> dict[str, Any]:
    options: dict[str, Any] = {"security_protocol": settings.security_protocol}
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.security_protocol.startswith("SASL"):
        password = settings.sasl_password
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": password.get_secret_value() if password else None,
        }
    return options


def _ssl_context(settings: StreamSettings) -> ssl.SSLContext:
    authorities = str(settings.ssl_ca_file) if settings.ssl_ca_file else None
    context: ssl.SSLContext = create_ssl_context(cafile=authorities)
    return context
