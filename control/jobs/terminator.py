"""Terminator: ends the runtime, has the machine deleted, and believes it when the provider's inventory lacks it.

It never gives up: a machine that stays is deleted again, with ever longer pauses.
"""

import contextlib
import time
from typing import Any

from control.jobs.framework.backoff import pause_seconds
from control.jobs.framework.calls import call
from control.jobs.framework.context import JobContext
from control.jobs.framework.inventories import Inventory
from control.jobs.framework.item import Instance, Item, Outcome
from control.jobs.framework.job import Job
from control.jobs.framework.providers import provider_of
from control.lifecycle import transition
from control.providers.interface import Machine, Provider, ProviderError
from fleetpulse.settings import JobSettings


def job(settings: JobSettings) -> Job:
    """The job."""
    return Job(
        "terminator",
        work,
        settings.terminator_timeout_seconds,
        settings.terminator_interval_seconds,
        settings.terminator_most_seconds,
        states=("terminating",),
    )


async def work(context: JobContext, item: Item) -> Outcome:
    """One attempt: stop, delete, and look."""
    instance = item.instance
    if instance is None:
        return Outcome("gone", 0.0)
    provider = provider_of(context, instance.provider)
    machine = await _machine(context, instance)
    if machine is not None:
        await _delete(context, item, provider, machine)
    inventory = await context.inventories.since(instance.provider, time.monotonic())
    left = inventory.find(instance.zone, instance.machine_id, instance.instance_id)
    if left is not None:
        return _again(context, item, "still_there", {"stopped": True, "status": left.status})
    if inventory.doubt is not None:
        return _again(context, item, inventory.doubt, {"stopped": True})
    await _end(context, item, instance, machine, inventory)
    return Outcome("terminated", 0.0)


async def _machine(context: JobContext, instance: Instance) -> Machine | None:
    """The machine, also one that was made by a process that died before it could write that down."""
    if instance.machine_id is not None:
        return instance.machine()
    inventory = await context.inventories.since(instance.provider, time.monotonic())
    return inventory.find(instance.zone, None, instance.instance_id)


async def _delete(context: JobContext, item: Item, provider: Provider, machine: Machine) -> None:
    """A runtime that cannot be stopped does not save the machine. Raises ProviderError."""
    if not item.memory.get("stopped"):
        # The failure is in the action log.
        with contextlib.suppress(ProviderError):
            await call(context, item, "stop_runtime", provider.name, provider.stop_runtime(machine))
    await call(context, item, "delete", provider.name, provider.delete(machine))


def _again(context: JobContext, item: Item, result: str, memory: dict[str, Any]) -> Outcome:
    settings = context.settings
    pause = pause_seconds(item.attempts + 1, settings.terminator_interval_seconds, settings.terminator_most_seconds)
    return Outcome(result, pause, failed=True, memory=memory)


async def _end(
    context: JobContext, item: Item, instance: Instance, machine: Machine | None, inventory: Inventory
) -> None:
    if machine is None:
        detail = f"{instance.provider} has no machine for it."
    else:
        attempts = f", at attempt {item.attempts + 1}" if item.attempts else ""
        detail = f"{instance.provider} no longer has machine {machine.machine_id}{attempts}."
    evidence = {
        "machine_id": machine.machine_id if machine is not None else None,
        "attempts": item.attempts + 1,
        "inventory_machines": len(inventory.machines),
        "inventory_age_seconds": time.monotonic() - inventory.asked_at,
    }
    async with context.fenced(item) as connection:
        await transition(
            connection,
            instance.instance_id,
            "terminated",
            reason="machine_gone",
            detail=detail,
            evidence=evidence,
            actor=item.actor,
            from_states={"terminating"},
        )
