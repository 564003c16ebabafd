"""What the mock cloud and its client say to each other, as JSON."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from fleetpulse.stream.heartbeat import Identity

Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
Times = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=400, pattern=r"^[^\x00]*$")]
# The agent's settings and no others: a name such as LD_PRELOAD would change more than the agent.
Environment = dict[
    Annotated[str, msgspec.Meta(pattern=r"^(FLEETPULSE|WORKER|OTEL)_[A-Z0-9_]+$")],
    Annotated[str, msgspec.Meta(max_length=100_000, pattern=r"^[^\x00]*$")],
]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a machine is like, and what goes wrong with it. Times are seconds since it was asked for."""

    host: bool = False
    """The agent reads this host's own CPU and GPUs, and there is no engine."""
    engine_requests_per_second: Annotated[float, msgspec.Meta(ge=0, le=1_000)] = 0.0
    """Background load of the engine."""
    boot_seconds: Seconds = 0.0
    create_slow_seconds: Seconds = 0.0
    """The machine is made at once; the answer takes this long."""
    create_fails: Times = 0
    """This many creations are answered with "out of stock"."""
    address_after_seconds: Seconds = 0.0
    dies_while_booting: bool = False
    vanishes_after_seconds: Seconds | None = None
    delete_silently_fails: Times = 0
    """This many deletions are answered as done, and the machine stays."""
    leaves_volume: bool = False
    """Its disk stays when it is gone."""
    engine_never_ready: bool = False
    """The engine loads its model for ever."""
    engine_stalls: bool = False
    """The engine accepts work and does none of it."""


def changed(options: Options, changes: Mapping[str, Any]) -> Options:
    """The options with some of them changed. Raises msgspec.ValidationError."""
    return msgspec.convert({**msgspec.to_builtins(options), **changes}, Options)


ProcessAct = Literal["kill", "freeze", "thaw", "start"]


class Acts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to do to a machine's processes now. One that was killed stays down until it is started again."""

    agent: ProcessAct | None = None
    engine: ProcessAct | None = None


class Faults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Changes a machine while it is there; ``options`` are those that change, the others stay as they are."""

    options: dict[str, Any] = {}
    acts: Acts = Acts()


class NewMachine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for a machine."""

    instance_id: Identity
    zone: Text
    instance_type: Text
    options: dict[str, Any] = {}
    """Fields of Options; the cloud's preset has the others."""


class Runtime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for agent and engine to run with these settings."""

    environment: Environment
    model: Text | None


class MachineView(msgspec.Struct, frozen=True):
    """A machine as the cloud shows it: without the agent's settings, which hold secrets."""

    machine_id: str
    zone: str
    instance_id: str
    instance_type: str
    status: str
    gone: bool
    agent_url: str | None
    engine_url: str | None
    agent_pid: int | None
    engine_pid: int | None


class VolumeView(msgspec.Struct, frozen=True):
    """A disk."""

    volume_id: str
    zone: str
    name: str
    size_bytes: int
    machine_id: str | None
    instance_id: str


class Refusal(msgspec.Struct, frozen=True):
    """Why a request was not done."""

    error: str


OUT_OF_STOCK: Final = "no machine of this type is free in this zone now"
