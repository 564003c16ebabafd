"""The heartbeat: what an agent says about its worker every second, as one JSON object."""

from typing import Annotated, Final, Literal

import msgspec

from fleetpulse.stream.errors import MalformedHeartbeatError
from fleetpulse.stream.json_message import JsonFormat

SCHEMA_VERSION: Final = 1

# Identity strings become Kafka keys, SQL text and metric labels: short, printable, and without NUL.
Identity = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]
Text = Annotated[str, msgspec.Meta(max_length=400, pattern=r"^[^\x00]*$")]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Ratio = Annotated[float, msgspec.Meta(ge=0, le=1)]

WorkerStatus = Literal["starting", "ready", "degraded", "draining"]
EngineState = Literal["absent", "unreachable", "starting", "ready"]


class Engine(msgspec.Struct, frozen=True):
    """The inference engine as the agent sees it. A reading the engine did not give is None, never 0."""

    state: EngineState
    kind: Text | None = None
    url: Text | None = None
    models: Annotated[tuple[Text, ...], msgspec.Meta(max_length=256)] = ()
    requests_waiting: Count | None = None
    requests_running: Count | None = None
    kv_cache_usage_ratio: Ratio | None = None
    # Grows whenever the engine does a step of work; "alive but doing nothing" is a count that stands still.
    step_count: Count | None = None


class Load(msgspec.Struct, frozen=True):
    """The host's load at the time of the heartbeat."""

    cpu_utilization_ratio: Ratio | None = None
    memory_utilization_ratio: Ratio | None = None
    gpu_count: Count | None = None
    gpu_utilization_ratio: Ratio | None = None
    gpu_memory_utilization_ratio: Ratio | None = None


class Heartbeat(msgspec.Struct, frozen=True):
    """One heartbeat.

    ``sequence`` starts at 1 with every ``boot_id`` and counts heartbeats made, so a gap is a lost heartbeat and a
    repeat is a resent one. ``sent_unix_nano`` is the worker's clock; liveness never depends on it.
    """

    worker_id: Identity
    instance_id: Identity
    boot_id: Identity
    sequence: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    sent_unix_nano: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    interval_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)]
    status: WorkerStatus
    agent_version: Text
    agent_checksum: Text | None = None
    agent_url: Text | None = None
    host_name: Text | None = None
    model_id: Text | None = None
    engine: Engine | None = None
    load: Load | None = None
    schema_version: int = SCHEMA_VERSION


_format = JsonFormat(Heartbeat, SCHEMA_VERSION, MalformedHeartbeatError)
encode = _format.encode
decode = _format.decode
