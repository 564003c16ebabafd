"""Draining: waits until the engine has no requests any more, or long enough, and then terminates."""

import time
from typing import Any, Final

from control.jobs.framework.context import JobContext
from control.jobs.framework.item import Item, Outcome
from control.jobs.framework.job import Job
from control.lifecycle import transition
from fleetpulse.settings import JobSettings
from fleetpulse.stream.fleet_view import WorkerView

# A request that was under way when draining began shows in the heartbeats after this.
SETTLE_SECONDS: Final = 1.0


def job(settings: JobSettings) -> Job:
    """The job."""
    interval = settings.draining_interval_seconds
    return Job("draining", work, 30.0, interval, 10 * interval, states=("draining",))


async def work(context: JobContext, item: Item) -> Outcome:
    """One look at what the engine still has to do."""
    if item.instance is None:
        return Outcome("gone", 0.0)
    drained_for = item.instance.state_seconds
    worker = context.view.get(item.subject, time.monotonic())
    requests = open_requests(worker, drained_for)
    if requests == 0:
        reason, detail = "drained", f"The engine had no requests any more after {drained_for:.1f} s."
    elif drained_for >= context.settings.draining_most_seconds:
        left = "unknown" if requests is None else str(requests)
        reason, detail = "drain_timeout", f"It was draining for {drained_for:.0f} s; requests left: {left}."
    else:
        return Outcome("waiting", context.settings.draining_interval_seconds)
    async with context.fenced(item) as connection:
        await transition(
            connection,
            item.subject,
            "terminating",
            reason=reason,
            detail=detail,
            evidence=_evidence(worker, drained_for, requests),
            actor=item.actor,
            from_states={"draining"},
        )
    return Outcome(reason, 0.0)


def open_requests(worker: WorkerView | None, drained_for_seconds: float) -> int | None:
    """Requests that run or wait, by a heartbeat since draining began; None while that is not known."""
    if worker is None or worker.heartbeat is None or worker.heartbeat_age_seconds is None or worker.state != "alive":
        return None
    if worker.heartbeat_age_seconds > drained_for_seconds - SETTLE_SECONDS:
        return None
    engine = worker.heartbeat.engine
    if engine is None or engine.state == "absent":
        return 0
    if engine.requests_running is None and engine.requests_waiting is None:
        return None
    return (engine.requests_running or 0) + (engine.requests_waiting or 0)


def _evidence(worker: WorkerView | None, drained_for: float, requests: int | None) -> dict[str, Any]:
    heartbeat = worker.heartbeat if worker is not None else None
    return {"draining_for_seconds": drained_for, "requests": requests, "heartbeat": heartbeat}
