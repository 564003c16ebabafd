"""What fills the event log: lifecycle messages from the stream, and workers whose state changed by their heartbeats."""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

import msgspec

from control.api.event_log import EventLog
from fleetpulse.stream import lifecycle
from fleetpulse.stream.consumer import Record, StreamReader
from fleetpulse.stream.errors import MessageError
from fleetpulse.stream.fleet_view import FleetView, State
from fleetpulse.telemetry import logger

_log = logger(__name__)

Seen = tuple[str, State]
"""Instance and state of a worker."""

LOOK_SECONDS: Final = 1.0
# A look at a worker takes 8 µs: large fleets are looked at less often, so that it stays below 2 % of a core.
LOOK_SECONDS_PER_WORKER: Final = 0.000_4
TURN_WORKERS: Final = 250


class WorkerChange(msgspec.Struct, frozen=True):
    """A worker that appeared, fell silent, came back, or was forgotten (state null)."""

    worker_id: str
    instance_id: str
    state: State | None
    previous_state: State | None


class Gone(msgspec.Struct, frozen=True):
    """An instance that was archived."""

    instance_id: str


async def follow_lifecycle(reader: StreamReader, events: EventLog) -> None:
    """Tell every lifecycle message, until cancelled."""
    async for records in reader.batches():
        for record in records:
            tell(record, events)


def tell(record: Record, events: EventLog) -> None:
    """Take one message in; one that cannot be read is skipped."""
    if record.value is None:
        instance_id = (record.key or b"").decode("utf-8", "replace")
        events.append("archived", msgspec.json.encode(Gone(instance_id)), None)
        return
    try:
        message = lifecycle.decode(record.value)
    except MessageError as error:
        _log.warning(
            "not a lifecycle message",
            extra={"reason": error.reason, "partition": record.partition, "offset": record.offset},
        )
        return
    events.append("lifecycle", lifecycle.encode(message), message.organization_id)


async def watch_workers(view: FleetView, events: EventLog) -> None:
    """Tell every worker whose state changed, until cancelled."""
    seen, size = states(view), len(view)
    while True:
        await asyncio.sleep(max(LOOK_SECONDS, LOOK_SECONDS_PER_WORKER * len(seen)))
        before, size = size, len(view)
        found = states(view) if size != before else await looked_again(view, seen)
        for change in changes(seen, found):
            events.append("worker", msgspec.json.encode(change), None)
        seen = found


async def looked_again(view: FleetView, seen: Mapping[str, Seen]) -> dict[str, Seen]:
    """The states of known workers, in turns, so that nobody waits for a large fleet."""
    found: dict[str, Seen] = {}
    for number, (worker_id, (instance_id, _)) in enumerate(seen.items(), 1):
        one = view.get(instance_id, time.monotonic())
        if one is not None:
            found[worker_id] = one.instance_id, one.state
        if number % TURN_WORKERS == 0:
            await asyncio.sleep(0)
    # Of a worker with two instances the other one may be who stands for it now.
    return found if found == seen else states(view)


def states(view: FleetView) -> dict[str, Seen]:
    """Instance and state of each worker."""
    return {one.worker_id: (one.instance_id, one.state) for one in view.snapshot(time.monotonic())}


def changes(before: Mapping[str, Seen], now: Mapping[str, Seen]) -> list[WorkerChange]:
    """What is different."""
    found = []
    for worker_id, (instance_id, state) in now.items():
        previous = before.get(worker_id)
        if previous != (instance_id, state):
            found.append(WorkerChange(worker_id, instance_id, state, previous[1] if previous else None))
    for worker_id in before.keys() - now.keys():
        instance_id, state = before[worker_id]
        found.append(WorkerChange(worker_id, instance_id, None, state))
    return found
