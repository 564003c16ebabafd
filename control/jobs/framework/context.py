"""What every job works with."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from control.database import Database
from control.jobs.framework.guard import Guard
from control.jobs.framework.inventories import Inventories
from control.jobs.framework.item import Instance, Item
from control.jobs.framework.lease import Connection, hold
from control.jobs.framework.metrics import JobMetrics
from control.jobs.framework.probes import Probes
from control.providers.interface import Provider
from fleetpulse.settings import JobSettings
from fleetpulse.stream.fleet_view import FleetView


@dataclass(frozen=True, slots=True)
class JobContext:
    """The parts of control that jobs use. ``worker_environment`` are the settings that all agents get."""

    database: Database
    view: FleetView
    providers: Mapping[str, Provider]
    settings: JobSettings
    worker_environment: Mapping[str, str]
    guard: Guard
    probes: Probes
    inventories: Inventories
    metrics: JobMetrics

    @contextlib.asynccontextmanager
    async def fenced(self, item: Item) -> AsyncIterator[Connection]:
        """A transaction that only happens while the item is ours. Raises LostLeaseError and UnavailableError."""
        async with self.database.transaction() as connection:
            await hold(connection, item)
            yield connection

    def environment_of(self, instance: Instance) -> dict[str, str]:
        """The settings of an instance's agent."""
        named = {
            "FLEETPULSE_AGENT_INSTANCE_ID": instance.instance_id,
            "FLEETPULSE_AGENT_WORKER_ID": instance.instance_id,
        }
        return {**self.worker_environment, **named}
