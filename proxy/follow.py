"""Following the stream: heartbeats and lifecycle messages into the fleet, other processes' usage into the budgets."""

import asyncio
import time
from collections.abc import Callable
from typing import Final
from uuid import UUID

from fleetpulse.stream import heartbeat, lifecycle, usage
from fleetpulse.stream.consumer import Record, StreamReader
from fleetpulse.stream.errors import MalformedUsageError, MessageError
from fleetpulse.stream.topics import HEARTBEATS
from fleetpulse.stream.usage import UsageRecord
from fleetpulse.telemetry import logger
from proxy.fleet import Fleet
from proxy.limits import Limits
from proxy.metrics import ProxyMetrics

_log = logger(__name__)

# After so many messages requests get their turn.
TURN_RECORDS: Final = 200
LOOK_SECONDS: Final = 1.0


async def follow(reader: StreamReader, fleet: Fleet, metrics: ProxyMetrics) -> None:
    """Take in heartbeats and lifecycle messages until cancelled."""
    await _take_all(reader, lambda record: _take(record, fleet), metrics)


async def follow_usage(reader: StreamReader, limits: Limits, own_boot: str, metrics: ProxyMetrics) -> None:
    """Take in the usage records of other processes until cancelled."""
    await _take_all(reader, lambda record: _spend(usage.decode(record.value or b""), limits, own_boot), metrics)


async def _take_all(reader: StreamReader, take: Callable[[Record], None], metrics: ProxyMetrics) -> None:
    async for batch in reader.batches():
        for number, record in enumerate(batch, 1):
            try:
                take(record)
            except MessageError as error:
                metrics.refused_messages.labels(error.reason).inc()
                where = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
                _log.debug("unreadable message", extra=where | {"error": str(error)})
            if number % TURN_RECORDS == 0:
                await asyncio.sleep(0)


def _take(record: Record, fleet: Fleet) -> None:
    """One message. A lifecycle message without a value says that the instance is over. Raises MessageError."""
    if record.topic == HEARTBEATS.name:
        fleet.observe(heartbeat.decode(record.value or b""), time.monotonic())
    elif record.value is None:
        fleet.remove((record.key or b"").decode("utf-8", "replace"))
    else:
        fleet.move(lifecycle.decode(record.value), time.monotonic())


def _spend(told: UsageRecord, limits: Limits, own_boot: str) -> None:
    """What another process of the proxy tells of a key's tokens, or an earlier one; our own are counted."""
    if told.record_id.startswith(f"{own_boot}-"):
        return
    try:
        key_id = UUID(told.key_id)
    except ValueError:
        raise MalformedUsageError("key_id is not a UUID") from None
    tokens = (told.prompt_tokens or 0) + (told.completion_tokens or 0)
    limits.spend(key_id, tokens, told.started_unix_nano / 1e9)


async def look_after(fleet: Fleet) -> None:
    """Look at the fleet once a second until cancelled."""
    while True:
        fleet.look(time.monotonic())
        await asyncio.sleep(LOOK_SECONDS)
