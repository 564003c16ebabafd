"""Following the heartbeat topic into the picture of the fleet."""

import asyncio
import time
from typing import Final

from control.metrics import HeartbeatMetrics
from fleetpulse.stream import heartbeat
from fleetpulse.stream.consumer import Record, StreamReader
from fleetpulse.stream.errors import MessageError
from fleetpulse.stream.fleet_view import FleetView
from fleetpulse.telemetry import logger

_log = logger(__name__)

# Behind by more than this many heartbeats of every worker, silence is a backlog.
LAG_HEARTBEATS_PER_WORKER: Final = 3
LAG_LEAST_RECORDS: Final = 100
# After so many heartbeats others get their turn (5 µs each).
TURN_RECORDS: Final = 1_000


async def follow(reader: StreamReader, view: FleetView, metrics: HeartbeatMetrics) -> None:
    """Observe every heartbeat until cancelled."""
    async for records in reader.batches():
        for number, record in enumerate(records, 1):
            observe(record, view, metrics)
            if number % TURN_RECORDS == 0:
                await asyncio.sleep(0)
        if is_following(reader, view):
            view.join(time.monotonic())
        else:
            view.leave()


def is_following(reader: StreamReader, view: FleetView) -> bool:
    """Whether what the reader brings is what workers say now."""
    bearable = max(LAG_LEAST_RECORDS, LAG_HEARTBEATS_PER_WORKER * len(view))
    return reader.connected and (reader.lag_records or 0) <= bearable


def observe(record: Record, view: FleetView, metrics: HeartbeatMetrics) -> None:
    """Take one message in; one that is no heartbeat is counted and skipped."""
    try:
        message = heartbeat.decode(record.value or b"")
    except MessageError as error:
        metrics.refused.labels(error.reason).inc()
        _log.debug("not a heartbeat", extra={"partition": record.partition, "offset": record.offset})
        return
    metrics.observed.labels(view.observe(message, time.monotonic(), time.time())).inc()
