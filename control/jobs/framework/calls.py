"""Calls of providers: each is timed, counted, and written to the action log with what came of it."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from control.actions import log_action
from control.jobs.framework.context import JobContext
from control.jobs.framework.item import Instance, Item
from control.providers.interface import Provider, ProviderError

Answer = TypeVar("Answer")
Describe = Callable[[Any], Mapping[str, Any]]


async def call(
    context: JobContext,
    item: Item,
    name: str,
    provider: str,
    answer: Awaitable[Answer],
    describe: Describe | None = None,
    *,
    log_success: bool = True,
) -> Answer:
    """Await a provider's answer; ``describe`` says what of it the log keeps. Raises ProviderError."""
    started = time.monotonic()
    try:
        found = await answer
    except ProviderError as error:
        detail = {"error": str(error), "retryable": error.retryable}
        await _record(context, item, name, provider, started, detail, succeeded=False)
        raise
    if log_success:
        detail = dict(describe(found)) if describe is not None else {}
        await _record(context, item, name, provider, started, detail, succeeded=True)
    else:
        context.metrics.provider_calls.labels(provider, name, "succeeded").inc()
    return found


async def start_runtime(context: JobContext, item: Item, instance: Instance, provider: Provider) -> None:
    """Also for an instance that was silent for long: nothing happens where agent and engine run. Raises
    ProviderError."""
    request = instance.request(context.environment_of(instance))
    await call(context, item, "start_runtime", instance.provider, provider.start_runtime(instance.machine(), request))


async def _record(
    context: JobContext,
    item: Item,
    name: str,
    provider: str,
    started: float,
    detail: Mapping[str, Any],
    *,
    succeeded: bool,
) -> None:
    seconds = time.monotonic() - started
    context.metrics.provider_calls.labels(provider, name, "succeeded" if succeeded else "failed").inc()
    async with context.database.transaction() as connection:
        await log_action(
            connection,
            f"provider.{name}",
            succeeded=succeeded,
            instance_id=item.instance.instance_id if item.instance is not None else None,
            provider=provider,
            actor=item.actor,
            duration_seconds=seconds,
            detail=detail,
        )
