"""Provisioning: has a machine made for each new instance, and asks again while the provider may yet make one."""

from typing import Any

import psycopg

from control.jobs.framework import said
from control.jobs.framework.backoff import pause_seconds
from control.jobs.framework.calls import call
from control.jobs.framework.context import JobContext
from control.jobs.framework.item import Instance, Item, Outcome
from control.jobs.framework.job import Job
from control.jobs.framework.providers import provider_of
from control.lifecycle import transition
from control.providers.interface import Machine, ProviderError
from fleetpulse.settings import JobSettings


def job(settings: JobSettings) -> Job:
    """The job."""
    return Job(
        "provisioning",
        work,
        settings.provisioning_timeout_seconds,
        settings.provisioning_interval_seconds,
        settings.provisioning_most_seconds,
        states=("provisioning",),
    )


async def work(context: JobContext, item: Item) -> Outcome:
    """One attempt. A provider that may succeed later is asked again, for as long as recovery lets it."""
    instance = item.instance
    if instance is None:
        return Outcome("gone", 0.0)
    provider = provider_of(context, instance.provider)
    request = instance.request(context.environment_of(instance))
    try:
        made = await call(context, item, "create", instance.provider, provider.create(request), _described)
    except ProviderError as error:
        if error.retryable:
            return _again(context, item, error)
        return await _fail(context, item, instance, "machine_refused", str(error))
    # As inventories name it, whatever the provider calls it.
    machine = said.machine(made)
    try:
        await _boot(context, item, instance, machine, attempts=item.attempts + 1)
    except psycopg.errors.UniqueViolation:
        reason = f"{instance.provider} answered with machine {machine.machine_id}, which another instance has"
        return await _fail(context, item, instance, "machine_taken", reason)
    return Outcome("made", 0.0)


def _described(machine: Machine) -> dict[str, Any]:
    return {"machine_id": machine.machine_id, "status": machine.status}


def _again(context: JobContext, item: Item, error: ProviderError) -> Outcome:
    settings = context.settings
    attempts = item.attempts + 1
    pause = pause_seconds(attempts, settings.provisioning_interval_seconds, settings.provisioning_most_seconds)
    return Outcome("retry", pause, failed=True, memory={"error": str(error)})


async def _boot(context: JobContext, item: Item, instance: Instance, machine: Machine, attempts: int) -> None:
    async with context.fenced(item) as connection:
        await transition(
            connection,
            instance.instance_id,
            "booting",
            reason="machine_made",
            detail=f"{instance.provider} made machine {machine.machine_id}, at attempt {attempts}.",
            evidence={"machine": machine, "attempts": attempts, **item.memory},
            actor=item.actor,
            from_states={"provisioning"},
            changes={"machine_id": machine.machine_id},
        )


async def _fail(context: JobContext, item: Item, instance: Instance, reason: str, error: str) -> Outcome:
    async with context.fenced(item) as connection:
        await transition(
            connection,
            instance.instance_id,
            "startup_failed",
            reason=reason,
            detail=f"{instance.provider} will not make the machine: {error}.",
            evidence={"error": error, "attempts": item.attempts + 1},
            actor=item.actor,
            from_states={"provisioning"},
            changes={"failure": error},
        )
    return Outcome("failed", 0.0)
