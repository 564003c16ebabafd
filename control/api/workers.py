"""``/workers``: who is alive by the stream, with what the database knows of each."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from control.api.parameters import is_identity, refuse_unknown
from control.api.problems import FieldError, ProblemError, unprocessable
from control.directory import Directory
from fleetpulse.stream.consumer import StreamReader
from fleetpulse.stream.fleet_view import STATES, FleetView, MassSilence, WorkerView


def add_routes(application: web.Application, view: FleetView, directory: Directory, reader: StreamReader) -> None:
    """The list and the single worker."""

    async def workers(request: web.Request) -> web.Response:
        if errors := refuse_unknown(request, ()):
            raise unprocessable(errors)
        now = time.monotonic()
        seen = view.snapshot(now)
        return _json(
            {
                "summary": summary(seen),
                "versions": versions(seen),
                "mass_silence": view.mass_silence(now),
                "stream": stream(view, reader, now),
                "workers": [described(one, directory) for one in seen],
            }
        )

    async def worker(request: web.Request) -> web.Response:
        worker_id = request.match_info["worker_id"]
        if not is_identity(worker_id):
            raise unprocessable([FieldError("worker_id", "must be 1 to 200 printable ASCII characters without spaces")])
        if errors := refuse_unknown(request, ()):
            raise unprocessable(errors)
        seen = view.worker(worker_id, time.monotonic())
        if seen is None:
            raise ProblemError(404, f"no worker {worker_id} was ever heard of, or not for a long time")
        return _json(described(seen, directory))

    application.router.add_get("/workers", workers)
    application.router.add_get("/workers/{worker_id}", worker)


def summary(seen: Sequence[WorkerView]) -> dict[str, int]:
    """Workers in all and in each state."""
    counts = Counter(one.state for one in seen)
    return {"workers": len(seen)} | {state: counts[state] for state in STATES}


def versions(seen: Sequence[WorkerView]) -> list[dict[str, Any]]:
    """How many live workers run each build of the agent, most first."""
    builds = Counter(
        (one.heartbeat.agent_version, one.heartbeat.agent_checksum)
        for one in seen
        if one.heartbeat is not None and one.state == "alive"
    )
    return [
        {"agent_version": version, "agent_checksum": checksum, "workers": count}
        for (version, checksum), count in builds.most_common()
    ]


def stream(view: FleetView, reader: StreamReader, now: float) -> dict[str, Any]:
    """How well control hears the fleet."""
    return {
        "connected": reader.connected,
        "joined_for_seconds": view.joined_for_seconds(now),
        "lag_records": reader.lag_records,
    }


def described(seen: WorkerView, directory: Directory) -> dict[str, Any]:
    """One worker. What is unknown is null."""
    known = directory.get(seen.instance_id)
    heard = seen.heartbeat
    return {
        "worker_id": seen.worker_id,
        "instance_id": seen.instance_id,
        "state": seen.state,
        "heartbeat_age_seconds": seen.heartbeat_age_seconds,
        "stale_after_seconds": seen.stale_after_seconds,
        "stale_for_seconds": seen.stale_for_seconds,
        "recorded_age_seconds": seen.recorded_age_seconds,
        "status": heard.status if heard else None,
        "model_id": heard.model_id if heard else None,
        "load": heard.load if heard else None,
        "engine": heard.engine if heard else None,
        "engine_stalled_seconds": seen.engine_stalled_seconds,
        "host_name": (heard.host_name if heard else None) or (known.host_name if known else None),
        "agent_url": heard.agent_url if heard else None,
        "agent_version": heard.agent_version if heard else None,
        "agent_checksum": heard.agent_checksum if heard else None,
        "boot_id": heard.boot_id if heard else None,
        "sequence": heard.sequence if heard else None,
        "heartbeat_interval_seconds": heard.interval_seconds if heard else None,
        "heartbeats": seen.heartbeats,
        "heartbeats_missed": seen.heartbeats_missed,
        "sequence_gaps": seen.sequence_gaps,
        "duplicates": seen.duplicates,
        "restarts": seen.restarts,
        "clock_skew_seconds": seen.clock_skew_seconds,
        "first_seen_at": known.first_seen_at if known else None,
    }


def _json(body: dict[str, Any] | MassSilence) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
