"""What a job works on, and what can come of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from control.providers.interface import Machine, MachineRequest
from fleetpulse.stream.lifecycle import InstanceState


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance as it was when its work was claimed."""

    instance_id: str
    state: InstanceState
    state_seconds: float
    """How long it has been in this state."""
    version: int
    provider: str
    zone: str
    instance_type: str
    model: str | None
    machine_id: str | None
    address: str | None
    agent_url: str | None
    engine_url: str | None
    price_per_hour: Decimal | None
    organization_id: UUID
    options: Mapping[str, Any]
    correlation_id: str | None

    def machine(self) -> Machine:
        """Its machine, for calls of the provider; only for an instance that has one."""
        assert self.machine_id is not None
        return Machine(self.machine_id, self.zone, self.instance_id, self.instance_type, status="")

    def request(self, worker_environment: Mapping[str, str]) -> MachineRequest:
        """What its provider is asked for."""
        return MachineRequest(
            self.instance_id, self.zone, self.instance_type, self.model, worker_environment, self.options
        )


@dataclass(frozen=True, slots=True)
class Item:
    """A piece of work that this process has claimed."""

    job: str
    subject: str
    token: int
    attempts: int
    """How often it failed in a row before."""
    memory: Mapping[str, Any]
    late_seconds: float
    """How long it was due when it was claimed."""
    instance: Instance | None

    @property
    def actor(self) -> str:
        """As history and action log name the job."""
        return f"job:{self.job}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an item: a word for the metrics, and when to look again.

    A transition plans the further work itself; what is said here then has no effect.
    """

    result: str
    again_seconds: float
    failed: bool = False
    memory: Mapping[str, Any] | None = None
    """What the job wants to know the next time; None is what it knew."""


class LostLeaseError(Exception):
    """Somebody else has the item now, or its instance has moved on: what was found out must not be written."""
