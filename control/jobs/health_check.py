"""Health check: follows an instance from its machine to an engine that answers, and calls it ready.

booting: the runtime is started. installing: the machine's address is looked up and its agent asked until it answers.
starting: agent and engine are asked until both are ready.
"""

from typing import Any

from control.actions import log_action
from control.jobs.framework.backoff import pause_seconds
from control.jobs.framework.calls import call, start_runtime
from control.jobs.framework.context import JobContext
from control.jobs.framework.health import Findings, look
from control.jobs.framework.item import Instance, Item, Outcome
from control.jobs.framework.job import Job
from control.jobs.framework.providers import provider_of
from control.lifecycle import transition
from control.lifecycle.evidence import text
from control.providers.interface import Address, NoSuchMachineError, Provider, ProviderError
from control.states import COMING_UP
from fleetpulse.settings import JobSettings
from fleetpulse.stream.lifecycle import InstanceState

_RESULT = "INSERT INTO health_results (instance_id, probe, succeeded, detail) VALUES (%s, %s, %s, %s)"


def job(settings: JobSettings) -> Job:
    """The job."""
    return Job(
        "health_check",
        work,
        settings.health_check_timeout_seconds,
        settings.health_check_interval_seconds,
        settings.health_check_most_seconds,
        states=("booting", "installing", "starting"),
    )


async def work(context: JobContext, item: Item) -> Outcome:
    """One check."""
    instance = item.instance
    if instance is None or instance.machine_id is None:
        return Outcome("gone", context.settings.circuit_open_seconds)
    provider = provider_of(context, instance.provider)
    try:
        if instance.state == "booting":
            return await _start_runtime(context, item, instance, provider)
        if item.attempts and item.attempts % context.settings.circuit_failures == 0:
            await start_runtime(context, item, instance, provider)
        address = await _address(context, item, instance, provider)
    except NoSuchMachineError as error:
        # The watch-dog sees that too, and may conclude from it; here it is a failed check.
        return await _failed(context, item, instance, "no_machine", str(error))
    except ProviderError as error:
        if not error.retryable:
            return await _give_up(context, item, instance, "runtime_refused", str(error))
        return await _failed(context, item, instance, "provider_error", str(error))
    if address is None:
        return _wait(context, item, "no_address", {"ip_available": False})
    return await _judge(context, item, instance, address)


async def _start_runtime(context: JobContext, item: Item, instance: Instance, provider: Provider) -> Outcome:
    await start_runtime(context, item, instance, provider)
    detail = f"{instance.provider} was told to start agent and engine on machine {instance.machine_id}."
    await _move(context, item, instance, "installing", "runtime_started", detail, {"attempts": item.attempts + 1})
    return Outcome("runtime_started", 0.0)


async def _address(context: JobContext, item: Item, instance: Instance, provider: Provider) -> Address | None:
    """None while there is none yet. Only what changes goes to the action log: this is asked often."""
    told = item.memory.get("ip_available")
    address = await call(
        context,
        item,
        "address",
        instance.provider,
        provider.address(instance.machine()),
        lambda found: {"ip_available": found is not None, "host": found.host if found is not None else None},
        log_success=False,
    )
    if told != (address is not None):
        detail = {"ip_available": address is not None, "host": address.host if address is not None else None}
        async with context.database.transaction() as connection:
            await log_action(
                connection,
                "provider.address",
                succeeded=True,
                instance_id=instance.instance_id,
                provider=instance.provider,
                actor=item.actor,
                detail=detail,
            )
    return address


async def _judge(context: JobContext, item: Item, instance: Instance, address: Address) -> Outcome:
    findings = await look(context.probes, instance, address)
    await _keep(context, item, findings)
    evidence = {"probes": findings.told(), "checks": item.memory.get("checks", 0) + 1}
    changes = {"address": address.host, "agent_url": address.agent_url, "engine_url": address.engine_url}
    if findings.lacking is None:
        detail = "The agent is ready" + (" and the engine lists its models." if address.engine_url else ".")
        await _move(context, item, instance, "ready", "ready", detail, evidence, changes)
        return Outcome("ready", 0.0)
    if findings.agent.answered and instance.state == "installing":
        detail = f"The agent answers at {address.agent_url}; {findings.lacking}."
        await _move(context, item, instance, "starting", "agent_answers", detail, evidence, changes)
        return Outcome("starting", 0.0)
    memory = {"ip_available": True, "results": findings.told()}
    if findings.agent.answered:
        return _wait(context, item, "not_ready", memory)
    return await _failed(context, item, instance, "no_answer", findings.lacking, memory)


def _wait(context: JobContext, item: Item, result: str, memory: dict[str, Any]) -> Outcome:
    """Nothing failed, it only takes time."""
    checks = item.memory.get("checks", 0) + 1
    settings = context.settings
    pause = pause_seconds(checks, settings.health_check_interval_seconds, settings.health_check_most_seconds)
    return Outcome(result, pause, memory={**memory, "checks": checks})


async def _failed(
    context: JobContext, item: Item, instance: Instance, result: str, why: str, memory: dict[str, Any] | None = None
) -> Outcome:
    """A failed check: again after a longer pause, after a break when there were many, never when there were too many.

    The start has not failed while nobody can tell: without the stream an agent is not ready.
    """
    settings, failures = context.settings, item.attempts + 1
    if failures >= settings.startup_failures and not context.guard.holds(item.job):
        return await _give_up(context, item, instance, "too_many_failed_checks", f"{failures} checks failed: {why}")
    pause = pause_seconds(failures, settings.health_check_interval_seconds, settings.health_check_most_seconds)
    if failures >= settings.circuit_failures:
        pause = max(pause, settings.circuit_open_seconds)
        if failures == settings.circuit_failures:
            await _open_circuit(context, item, why)
    kept = {**item.memory, **(memory or {}), "checks": item.memory.get("checks", 0) + 1}
    return Outcome(result, pause, failed=True, memory=kept)


async def _open_circuit(context: JobContext, item: Item, why: str) -> None:
    context.metrics.circuits_opened.inc()
    detail = {"why": why, "failed_checks": item.attempts + 1, "seconds": context.settings.circuit_open_seconds}
    async with context.database.transaction() as connection:
        await log_action(
            connection, "circuit_opened", succeeded=True, instance_id=item.subject, actor=item.actor, detail=detail
        )


async def _give_up(context: JobContext, item: Item, instance: Instance, reason: str, why: str) -> Outcome:
    evidence = {"error": why, "checks": item.memory.get("checks", 0) + 1, "probes": item.memory.get("results")}
    detail = f"It does not start: {why}."
    await _move(context, item, instance, "startup_failed", reason, detail, evidence, {"failure": why})
    return Outcome("failed", 0.0)


async def _keep(context: JobContext, item: Item, findings: Findings) -> None:
    """Write down the results that differ from those of the check before."""
    before = item.memory.get("results", {})
    changed = {probe: result for probe, result in findings.told().items() if result != before.get(probe)}
    if not changed:
        return
    async with context.database.transaction() as connection:
        for probe, result in changed.items():
            await connection.execute(_RESULT, (item.subject, probe, result["succeeded"], text(result["detail"])))


async def _move(
    context: JobContext,
    item: Item,
    instance: Instance,
    to_state: InstanceState,
    reason: str,
    detail: str,
    evidence: dict[str, Any],
    changes: dict[str, Any] | None = None,
) -> None:
    async with context.fenced(item) as connection:
        await transition(
            connection,
            instance.instance_id,
            to_state,
            reason=reason,
            detail=detail,
            evidence={"in_state_for_seconds": instance.state_seconds, **evidence},
            actor=item.actor,
            from_states=set(COMING_UP) - {"provisioning"},
            changes=changes,
        )
