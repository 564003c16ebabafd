"""What a provider of machines can do. docs/providers.md shows how to write one.

Every method may be called again after a failure or a crash, and must then find what the first call did. For one
machine the calls come in the order create, start_runtime, address until there is one, and in the end delete until the
inventory does not have it; calls for different machines come at the same time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from types import TracebackType
from typing import Any, Protocol, Self


class ProviderError(Exception):
    """A call that failed; the message says what and why, without secrets.

    ``retryable`` is whether the same call may succeed later (a timeout, a rate limit, no capacity now) or never will
    (an unknown instance type, wrong credentials).
    """

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class NoSuchMachineError(ProviderError):
    """The provider does not know this machine (any more)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=False)


@dataclass(frozen=True, slots=True)
class InstanceType:
    """A kind of machine, and what an hour of it costs; None where the provider names no price."""

    name: str
    gpu_model: str | None
    gpu_count: int
    gpu_memory_bytes: int | None
    """Of one GPU."""
    cpu_count: int | None
    memory_bytes: int | None
    price_per_hour: Decimal | None
    currency: str
    zones: tuple[str, ...]
    available: bool = True


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What can be had, and where."""

    zones: tuple[str, ...]
    instance_types: tuple[InstanceType, ...]


@dataclass(frozen=True, slots=True)
class MachineRequest:
    """A machine to make for an instance. ``worker_environment`` is the agent's settings, ready to use."""

    instance_id: str
    zone: str
    instance_type: str
    model: str | None
    """Hugging Face id of the model to serve."""
    worker_environment: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine at the provider. ``instance_id`` is None where its tags name none of ours."""

    machine_id: str
    zone: str
    instance_id: str | None
    instance_type: str | None
    status: str
    """In the provider's own words."""
    gone: bool = False
    """Whether it is deleted, or costs nothing and will never run again."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a machine and what runs on it can be reached."""

    host: str
    agent_url: str
    engine_url: str | None
    ssh_port: int | None = 22


@dataclass(frozen=True, slots=True)
class Volume:
    """A disk at the provider. ``machine_id`` is None when it is attached to none."""

    volume_id: str
    zone: str
    name: str
    size_bytes: int
    machine_id: str | None
    instance_id: str | None


class Provider(Protocol):
    """A provider, used as an asynchronous context manager for as long as control runs."""

    name: str

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    async def catalogue(self) -> Catalogue:
        """All zones and instance types. Raises ProviderError."""

    async def create(self, request: MachineRequest) -> Machine:
        """Make the machine, or find the one that an earlier call made for this instance. Raises ProviderError."""

    async def start_runtime(self, machine: Machine, request: MachineRequest) -> None:
        """See to it that agent and engine run on it, or will; nothing happens when they do. Raises ProviderError."""

    async def stop_runtime(self, machine: Machine) -> None:
        """Stop agent and engine, the machine stays; nothing happens when they do not run. Raises ProviderError."""

    async def address(self, machine: Machine) -> Address | None:
        """None while it has none yet, which is no error. Raises NoSuchMachineError, ProviderError."""

    async def delete(self, machine: Machine) -> None:
        """Have it deleted with its own volumes; nothing happens when it is gone. Raises ProviderError."""

    async def inventory(self) -> Sequence[Machine]:
        """Every machine made by fleetpulse, of other control services too. Raises ProviderError."""

    async def volumes(self) -> Sequence[Volume]:
        """Every volume made by fleetpulse; none where the provider has no volumes. Raises ProviderError."""

    async def delete_volume(self, volume: Volume) -> None:
        """Delete a volume that is attached to no machine; nothing happens when it is gone. Raises ProviderError."""
