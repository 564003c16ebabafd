"""Recovery: finds instances that have been in a passing state for too long, and gives each a next step.

How long is too long is learned from earlier instances of the same type, within the limits of the settings.
"""

import time
from typing import Final

from control.actions import log_action
from control.database import Row
from control.jobs.framework.context import JobContext
from control.jobs.framework.durations import Durations
from control.jobs.framework.item import Item, Outcome
from control.jobs.framework.job import Job
from control.jobs.framework.silence import engine_is_away
from control.lifecycle import transition
from fleetpulse.settings import JobSettings
from fleetpulse.stream.lifecycle import InstanceState

NEXT: Final[dict[InstanceState, InstanceState]] = {
    "provisioning": "startup_failed",
    "booting": "startup_failed",
    "installing": "startup_failed",
    "starting": "startup_failed",
    "startup_failed": "terminating",
    "worker_dead": "terminating",
    "draining": "terminating",
}
# Attempts to delete, after which pauses are long enough for a new beginning to help.
MANY_ATTEMPTS: Final = 8
# Per look: a fleet that comes to a halt is a matter for people.
MOST: Final = 100

_WAITING: Final = """
SELECT instance_id, state, provider, instance_type, extract(epoch FROM now() - state_since)::float8, engine_url
FROM instances
WHERE state = ANY(%(states)s) AND state NOT IN ('ready', 'terminated', 'archived')
    AND state_since < now() - %(floor)s * interval '1 second'
ORDER BY state_since
"""
_BEGIN_ANEW: Final = """
UPDATE job_work SET due_at = clock_timestamp(), attempts = 0, memory = '{}'
WHERE subject = %s AND job = 'terminator' AND owner IS NULL AND attempts >= %s
"""


def job(settings: JobSettings) -> Job:
    """The job."""
    interval = settings.recovery_interval_seconds
    work = Recovery(settings).work
    return Job("recovery", work, settings.recovery_timeout_seconds, interval, 4 * interval, per="fleet")


def limits(settings: JobSettings) -> dict[InstanceState, float]:
    """The longest that an instance may be in each state, unless less was learned."""
    return {
        "provisioning": settings.provisioning_stuck_seconds,
        "booting": settings.booting_stuck_seconds,
        "installing": settings.installing_stuck_seconds,
        "starting": settings.starting_stuck_seconds,
        "startup_failed": settings.failed_keep_seconds,
        "worker_dead": settings.dead_keep_seconds,
        # The draining job ends it first, unless that hangs.
        "draining": 1.5 * settings.draining_most_seconds,
        "terminating": settings.terminating_stuck_seconds,
    }


class Recovery:
    """The job's work, with the durations that it has learned."""

    def __init__(self, settings: JobSettings) -> None:
        self._limits = limits(settings)
        self._floor_seconds = settings.stuck_floor_seconds
        self._durations = Durations()

    async def work(self, context: JobContext, item: Item) -> Outcome:
        """One look."""
        await self._durations.refresh(context.database)
        found: list[tuple[Row, float]] = []
        parameters = {"states": list(self._limits), "floor": min(self._floor_seconds, *self._limits.values())}
        for row in await context.database.rows(_WAITING, parameters):
            limit = self.limit(row[1], row[2], row[3])
            if row[1] == "worker_dead" and _may_be_loading(context, row[0], row[5]):
                limit = max(limit, self._limits["starting"])
            if row[4] > limit:
                found.append((row, limit))
        self._measure(context, found)
        held = context.guard.holds(item.job) if found else False
        for row, limit in found[:MOST]:
            await self._recover(context, item, row, limit, held)
        return Outcome("looked", context.settings.recovery_interval_seconds)

    def limit(self, state: InstanceState, provider: str, instance_type: str) -> float:
        """Seconds after which an instance is stuck."""
        learned = self._durations.learned(provider, instance_type, state)
        most = self._limits[state]
        return most if learned is None else min(max(learned, self._floor_seconds), most)

    def _measure(self, context: JobContext, found: list[tuple[Row, float]]) -> None:
        for state in self._limits:
            context.metrics.stuck.labels(state).set(sum(row[1] == state for row, _ in found))

    async def _recover(self, context: JobContext, item: Item, row: Row, limit: float, held: bool) -> None:
        instance_id, state, _, _, seconds, _ = row
        to_state = NEXT.get(state)
        if to_state is not None and held:
            return
        evidence = {"in_state_for_seconds": seconds, "limit_seconds": limit}
        detail = f"It was {state} for {seconds:.0f} s, longer than {limit:.0f} s."
        async with context.fenced(item) as connection:
            if to_state is None:
                # Terminating only ends when the machine is gone: begin again, as if it were the first time.
                if (await connection.execute(_BEGIN_ANEW, (instance_id, MANY_ATTEMPTS))).rowcount:
                    await log_action(
                        connection,
                        "termination_begun_anew",
                        succeeded=True,
                        instance_id=instance_id,
                        actor=item.actor,
                        detail=evidence,
                    )
                return
            await transition(
                connection,
                instance_id,
                to_state,
                reason=f"{state}_too_long",
                detail=detail,
                evidence=evidence,
                actor=item.actor,
                from_states={state},
                changes={"failure": detail} if to_state == "startup_failed" else None,
            )


def _may_be_loading(context: JobContext, instance_id: str, engine_url: str | None) -> bool:
    """Whether a dead worker's agent is heard, and waits for its engine: one that was started again loads its model."""
    worker = context.view.get(instance_id, time.monotonic())
    return worker is not None and worker.stale_for_seconds is None and engine_is_away(engine_url, worker)
