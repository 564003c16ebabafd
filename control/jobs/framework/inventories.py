"""What a provider says it has, read once for all who ask at the same time, and when not to believe it."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from control.database import Database
from control.jobs.framework import said
from control.jobs.framework.owners import MachineKey, OwnedMachine, machines_of
from control.providers.interface import Machine, Provider
from fleetpulse.settings import JobSettings


@dataclass(frozen=True, slots=True)
class Inventory:
    """The machines of a provider that are not gone. ``asked_at`` is on the monotonic clock."""

    asked_at: float
    machines: Mapping[MachineKey, Machine]
    expected: Mapping[MachineKey, OwnedMachine]
    """Machines that were to be there when the provider was asked."""
    doubt: str | None
    """Why it proves nothing, if it does not."""

    def find(self, zone: str, machine_id: str | None, instance_id: str) -> Machine | None:
        """An instance's machine: by its id, or by the instance that its tags name."""
        if machine_id is not None and (known := self.machines.get((zone, machine_id))) is not None:
            return known
        return next((one for one in self.machines.values() if one.instance_id == instance_id), None)


class Inventories:
    """The newest inventory of each provider."""

    def __init__(self, database: Database, providers: Mapping[str, Provider], settings: JobSettings) -> None:
        self._database = database
        self._settings = settings
        self._providers = providers
        self._newest: dict[str, Inventory] = {}
        self._locks = {name: asyncio.Lock() for name in providers}

    async def since(self, provider: str, moment: float) -> Inventory:
        """An inventory that was asked for at ``moment`` (monotonic) or later.

        Raises ProviderError and UnavailableError.
        """
        async with self._locks[provider]:
            newest = self._newest.get(provider)
            if newest is None or newest.asked_at < moment:
                asked_at = time.monotonic()
                expected = await machines_of(self._database, provider)
                machines = [said.machine(one) for one in await self._providers[provider].inventory()]
                there = {(one.zone, one.machine_id): one for one in machines if not one.gone}
                newest = self._newest[provider] = Inventory(
                    asked_at, there, expected, doubt(self._settings, there, expected)
                )
            return newest


def doubt(settings: JobSettings, there: Iterable[MachineKey], expected: Iterable[MachineKey]) -> str | None:
    """Why an inventory proves nothing: it lacks too many machines at once of those that should be there."""
    known = set(expected)
    lacking = len(known.difference(there))
    if lacking >= settings.inventory_loss_machines and lacking > settings.inventory_loss_share * len(known):
        return "inventory_lost_many"
    return None
