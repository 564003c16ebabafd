"""The lifecycle message: an instance as control sees it, the whole of it each time, so that the newest one suffices.

The topic is compacted by instance id. An archived instance ends with a tombstone.
"""

from typing import Annotated, Final, Literal, get_args

import msgspec

from fleetpulse.stream.errors import MalformedLifecycleError
from fleetpulse.stream.heartbeat import Identity, Text
from fleetpulse.stream.json_message import JsonFormat

SCHEMA_VERSION: Final = 1

InstanceState = Literal[
    "provisioning",
    "booting",
    "installing",
    "starting",
    "ready",
    "startup_failed",
    "worker_dead",
    "draining",
    "terminating",
    "terminated",
    "archived",
]
INSTANCE_STATES: Final[tuple[InstanceState, ...]] = get_args(InstanceState)


class LifecycleEvent(msgspec.Struct, frozen=True):
    """One step of an instance's life.

    ``version`` counts an instance's transitions from 1: of two messages the one with the greater version is the newer.
    """

    instance_id: Identity
    version: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    state: InstanceState
    previous_state: InstanceState | None
    reason: Text
    at_unix_nano: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    organization_id: Text
    provider: Text
    zone: Text
    instance_type: Text
    deployment_id: Text | None = None
    model_id: Text | None = None
    """Control's UUID of the model."""
    model: Text | None = None
    """The model's Hugging Face id, as engines report it."""
    agent_url: Text | None = None
    engine_url: Text | None = None
    """Where requests to the engine go."""
    price_per_hour: Annotated[float, msgspec.Meta(ge=0)] | None = None
    currency: Text = "EUR"
    correlation_id: Text | None = None
    schema_version: int = SCHEMA_VERSION


_format = JsonFormat(LifecycleEvent, SCHEMA_VERSION, MalformedLifecycleError)
encode = _format.encode
decode = _format.decode
