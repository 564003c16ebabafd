"""Following the stream: heartbeats and lifecycle messages into the fleet, other processes' usage into the budgets."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

from fleetpulse.stream import heartbeat, lifecycle, usage
from fleetpulse.stream.consumer import Record, StreamReader
from fleetpulse.stream.errors import MessageError
from fleetpulse.telemetry import logger
from proxy.fleet import Fleet
from proxy.limits import Limits
from proxy.metrics import ProxyMetrics

_log = logger(__name__)

# After so many messages requests get their turn.
TURN_RECORDS: Final = 200
LOOK_SECONDS: Final = 1.0


async def _records(reader: StreamReader) -> AsyncIterator[Record]:
    async for batch in reader.batches():
        for number, record in enumerate(batch, 1):
            yield record
            if number % TURN_RECORDS == 0:
                await asyncio.sleep(0)


async def follow_heartbeats(reader: StreamReader, fleet: Fleet, metrics: ProxyMetrics) -> None:
    """Observe every heartbeat until cancelled."""
    async for record in _records(reader):
        try:
            fleet.observe(heartbeat.decode(record.value or b""), time.monotonic())
        except MessageError as error:
            _refuse(record, error, metrics)


async def follow_lifecycle(reader: StreamReader, fleet: Fleet, metrics: ProxyMetrics) -> None:
    """Take in every lifecycle message until cancelled; one without a value says that the instance is over."""
    async for record in _records(reader):
        if record.value is None:
            fleet.remove((record.key or b"").decode("utf-8", "replace"))
            continue
        try:
            fleet.move(lifecycle.decode(record.value), time.monotonic())
        except MessageError as error:
            _refuse(record, error, metrics)


async def follow_usage(reader: StreamReader, limits: Limits, own_boot: str, metrics: ProxyMetrics) -> None:
    """Count what the proxy's other processes tell of the keys' tokens, until cancelled."""
    async for record in _records(reader):
        try:
            told = usage.decode(record.value or b"")
            if not told.record_id.startswith(f"{own_boot}-"):
                limits.spend(UUID(told.key_id), (told.prompt_tokens or 0) + (told.completion_tokens or 0))
        except MessageError as error:
            _refuse(record, error, metrics)
        except ValueError:
            metrics.refused_messages.labels("malformed_usage").inc()


async def look_after(fleet: Fleet) -> None:
    """Look at the fleet once a second until cancelled."""
    while True:
        fleet.look(time.monotonic())
        await asyncio.sleep(LOOK_SECONDS)


def _refuse(record: Record, error: MessageError, metrics: ProxyMetrics) -> None:
    metrics.refused_messages.labels(error.reason).inc()
    _log.debug("unreadable message", extra={"topic": record.topic, "offset": record.offset, "error": str(error)})
