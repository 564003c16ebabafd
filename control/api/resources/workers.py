"""``/workers``: who is alive by the stream, with what the database knows of each."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Nothing
from control.api.problems import ProblemError
from control.directory import Directory
from fleetpulse.stream.consumer import StreamReader
from fleetpulse.stream.fleet_view import STATES, FleetView, MassSilence, State, WorkerView
from fleetpulse.stream.heartbeat import Engine, Load, WorkerStatus

TAG: Final = "Fleet"


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. What is unknown is null."""

    worker_id: str
    instance_id: str
    state: State
    heartbeat_age_seconds: float | None
    stale_after_seconds: float
    stale_for_seconds: float | None
    recorded_age_seconds: float | None
    status: WorkerStatus | None
    model_id: str | None
    load: Load | None
    engine: Engine | None
    engine_stalled_seconds: float | None
    host_name: str | None
    agent_url: str | None
    agent_version: str | None
    agent_checksum: str | None
    boot_id: str | None
    sequence: int | None
    heartbeat_interval_seconds: float | None
    heartbeats: int
    heartbeats_missed: int
    sequence_gaps: int
    duplicates: int
    restarts: int
    clock_skew_seconds: float | None
    first_seen_at: datetime | None


class Build(msgspec.Struct, frozen=True):
    """A build of the agent, and how many live workers run it."""

    agent_version: str
    agent_checksum: str | None
    workers: int


class Stream(msgspec.Struct, frozen=True):
    """How well control hears the fleet."""

    connected: bool
    joined_for_seconds: float | None
    lag_records: int | None


class Workers(msgspec.Struct, frozen=True):
    """The fleet by its heartbeats."""

    summary: Mapping[str, int]
    versions: Sequence[Build]
    mass_silence: MassSilence
    stream: Stream
    workers: Sequence[Worker]


async def workers(call: Call[Nothing, Nothing]) -> Workers:
    """All."""
    view, now = call.parts.view, time.monotonic()
    seen = view.snapshot(now)
    return Workers(
        summary(seen),
        versions(seen),
        view.mass_silence(now),
        stream(view, call.parts.reader, now),
        [described(one, call.parts.directory) for one in seen],
    )


async def worker(call: Call[Nothing, Nothing]) -> Worker:
    """One."""
    worker_id = call.path["worker_id"]
    seen = call.parts.view.worker(worker_id, time.monotonic())
    if seen is None:
        raise ProblemError(404, f"no worker {worker_id} was ever heard of, or not for a long time")
    return described(seen, call.parts.directory)


def summary(seen: Sequence[WorkerView]) -> dict[str, int]:
    """Workers in all and in each state."""
    counts = Counter(one.state for one in seen)
    return {"workers": len(seen)} | {state: counts[state] for state in STATES}


def versions(seen: Sequence[WorkerView]) -> list[Build]:
    """How many live workers run each build of the agent, most first."""
    builds = Counter(
        (one.heartbeat.agent_version, one.heartbeat.agent_checksum)
        for one in seen
        if one.heartbeat is not None and one.state == "alive"
    )
    return [Build(version, checksum, count) for (version, checksum), count in builds.most_common()]


def stream(view: FleetView, reader: StreamReader, now: float) -> Stream:
    """How well control hears the fleet."""
    return Stream(reader.connected, view.joined_for_seconds(now), reader.lag_records)


def described(seen: WorkerView, directory: Directory) -> Worker:
    """One worker. What is unknown is null."""
    known = directory.get(seen.instance_id)
    heard = seen.heartbeat
    return Worker(
        worker_id=seen.worker_id,
        instance_id=seen.instance_id,
        state=seen.state,
        heartbeat_age_seconds=seen.heartbeat_age_seconds,
        stale_after_seconds=seen.stale_after_seconds,
        stale_for_seconds=seen.stale_for_seconds,
        recorded_age_seconds=seen.recorded_age_seconds,
        status=heard.status if heard else None,
        model_id=heard.model_id if heard else None,
        load=heard.load if heard else None,
        engine=heard.engine if heard else None,
        engine_stalled_seconds=seen.engine_stalled_seconds,
        host_name=(heard.host_name if heard else None) or (known.host_name if known else None),
        agent_url=heard.agent_url if heard else None,
        agent_version=heard.agent_version if heard else None,
        agent_checksum=heard.agent_checksum if heard else None,
        boot_id=heard.boot_id if heard else None,
        sequence=heard.sequence if heard else None,
        heartbeat_interval_seconds=heard.interval_seconds if heard else None,
        heartbeats=seen.heartbeats,
        heartbeats_missed=seen.heartbeats_missed,
        sequence_gaps=seen.sequence_gaps,
        duplicates=seen.duplicates,
        restarts=seen.restarts,
        clock_skew_seconds=seen.clock_skew_seconds,
        first_seen_at=known.first_seen_at if known else None,
    )


ENDPOINTS: Final = (
    Endpoint("GET", "/workers", "Who is alive, by the heartbeats", TAG, workers, operators=True),
    Endpoint("GET", "/workers/{worker_id}", "One worker", TAG, worker, operators=True),
)
