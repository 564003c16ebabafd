"""Watch-dog: compares each provider's inventory with the instances, in both directions.

An instance whose machine is gone is terminated. A machine that no active instance owns is an orphan, see
framework/orphans.py. An inventory that cannot be read, or that lacks many machines at once, proves nothing.
"""

import time

from control.jobs.framework.calls import call
from control.jobs.framework.context import JobContext
from control.jobs.framework.inventories import Inventory
from control.jobs.framework.item import Item, Outcome
from control.jobs.framework.job import Job
from control.jobs.framework.orphans import keep_account
from control.jobs.framework.owners import MachineKey, OwnedMachine
from control.jobs.framework.providers import provider_of
from control.lifecycle import transition
from control.providers.interface import Machine, NoSuchMachineError
from control.states import ACTIVE
from fleetpulse.settings import JobSettings
from fleetpulse.telemetry import logger

_log = logger(__name__)


def job(settings: JobSettings) -> Job:
    """The job."""
    interval = settings.watch_dog_interval_seconds
    return Job("watch_dog", work, settings.watch_dog_timeout_seconds, interval, 4 * interval, per="provider")


async def work(context: JobContext, item: Item) -> Outcome:
    """One comparison of a provider. Raises ProviderError."""
    name = item.subject
    provider_of(context, name)
    reading = context.inventories.since(name, time.monotonic())
    inventory = await call(context, item, "inventory", name, reading, log_success=False)
    missing = absences(item.memory.get("missing", {}), inventory)
    held = context.guard.holds(item.job, inventory.doubt)
    for key, times in missing.items():
        if times >= context.settings.watch_dog_confirmations and not held:
            zone, machine_id = key.split("/", 1)
            await _confirm(context, item, inventory, (zone, machine_id), times)
    await keep_account(context, item, inventory, may_delete=not held)
    again = context.settings.watch_dog_interval_seconds
    return Outcome("compared" if inventory.doubt is None else inventory.doubt, again, memory={"missing": missing})


def absences(before: dict[str, int], inventory: Inventory) -> dict[str, int]:
    """How many inventories in a row lacked each machine, by zone/machine id. A doubtful one does not count."""
    lacking = {f"{zone}/{machine_id}" for zone, machine_id in set(inventory.expected) - set(inventory.machines)}
    more = 0 if inventory.doubt is not None else 1
    return {key: before.get(key, 0) + more for key in lacking}


async def _confirm(context: JobContext, item: Item, inventory: Inventory, key: MachineKey, times: int) -> None:
    """Ask for the machine itself, and terminate its instance unless it is there after all. Raises ProviderError."""
    owned = inventory.expected[key]
    machine = Machine(key[1], key[0], owned.instance_id, None, status="")
    try:
        if await context.providers[item.subject].address(machine) is not None:
            _log.warning("machine has an address but is not in the inventory", extra={"machine_id": key[1]})
            return
        answer = "it has no address"
    except NoSuchMachineError as error:
        answer = str(error)
    await _terminate(context, item, key, owned, {"inventories": times, "machine": answer})


async def _terminate(
    context: JobContext, item: Item, key: MachineKey, owned: OwnedMachine, evidence: dict[str, object]
) -> None:
    async with context.fenced(item) as connection:
        await transition(
            connection,
            owned.instance_id,
            "terminating",
            reason="machine_missing",
            detail=f"{item.subject} does not have machine {key[1]} any more.",
            evidence={"machine_id": key[1], "zone": key[0], **evidence},
            actor=item.actor,
            from_states=ACTIVE - {"provisioning", "terminating"},
        )
