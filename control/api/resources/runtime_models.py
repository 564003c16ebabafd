"""``/runtime-models``: which model is loaded where, as workers' heartbeats say."""

import time
from collections.abc import Sequence
from typing import Final

import msgspec

from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Nothing
from fleetpulse.stream.fleet_view import State, WorkerView
from fleetpulse.stream.heartbeat import EngineState, WorkerStatus


class Holder(msgspec.Struct, frozen=True):
    """A worker that has the model, and how busy its engine is. What is unknown is null."""

    worker_id: str
    instance_id: str
    state: State
    status: WorkerStatus
    engine_state: EngineState
    requests_running: int | None
    requests_waiting: int | None


class RuntimeModel(msgspec.Struct, frozen=True):
    """A model by the name that engines give it. ``alive`` counts the workers that are heard."""

    model: str
    alive: int
    workers: Sequence[Holder]


class RuntimeModels(msgspec.Struct, frozen=True):
    """Loaded models, by name."""

    models: Sequence[RuntimeModel]


async def runtime_models(call: Call[Nothing, Nothing]) -> RuntimeModels:
    """What is loaded where."""
    return RuntimeModels(loaded(call.parts.view.snapshot(time.monotonic())))


def loaded(seen: Sequence[WorkerView]) -> list[RuntimeModel]:
    """Workers by model; one that was never heard has none."""
    holders: dict[str, list[Holder]] = {}
    for one in seen:
        engine = one.heartbeat.engine if one.heartbeat else None
        if one.heartbeat is None or engine is None:
            continue
        holder = Holder(
            one.worker_id,
            one.instance_id,
            one.state,
            one.heartbeat.status,
            engine.state,
            engine.requests_running,
            engine.requests_waiting,
        )
        for model in engine.models:
            holders.setdefault(model, []).append(holder)
    return [
        RuntimeModel(model, sum(holder.state == "alive" for holder in workers), workers)
        for model, workers in sorted(holders.items())
    ]


ENDPOINTS: Final = (
    Endpoint("GET", "/runtime-models", "Which model is loaded where", "Fleet", runtime_models, operators=True),
)
