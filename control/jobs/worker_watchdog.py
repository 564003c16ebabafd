"""Worker watchdog: a ready worker that falls silent, or whose engine stalls or is gone, is dead; one that is heard
again is ready.

It works from the picture of the fleet in memory, several times a second, in every control process; only what it
concludes goes to the database, where one process wins.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from control.actions import log_action
from control.database import UnavailableError
from control.jobs.framework.context import JobContext
from control.jobs.framework.engines import CONCURRENT_PROBES, Engines
from control.jobs.framework.probes import ProbeResult
from control.jobs.framework.roster import Dead, Ready, Roster
from control.jobs.framework.silence import (
    ASSUMED_INTERVAL_SECONDS,
    Death,
    death_by_mute_engine,
    death_by_silence,
    death_by_stall,
    engine_is_away,
    silence_of,
    stands_still,
)
from control.lifecycle import LifecycleError, transition
from fleetpulse.stream.fleet_view import WorkerView
from fleetpulse.telemetry import correlation_id, logger

_log = logger(__name__)

NAME: Final = "worker_watchdog"
ACTOR: Final = f"job:{NAME}"
REFRESH_SECONDS: Final = 1.0
# Longer than a heartbeat takes to be noticed, shorter than anybody's patience.
PROBE_SECONDS: Final = 1.0
PROBE_AGAIN_SECONDS: Final = 0.5
# A worker is looked at this much after it would be suspect: at 1 s between heartbeats that is every other one, and half
# the work of looking as soon as possible.
SLACK_SECONDS: Final = 0.65
# The schedule is kept in slots of this length: a heap would cost more than the looks.
SLOT_SECONDS: Final = 0.1
# Heartbeats after its death that prove a worker alive: one alone may have been under way when it died.
HEARTBEATS_OF_LIFE: Final = 2

_DEATHS: Final = """
SELECT count(*) FROM instance_transitions
WHERE instance_id = %(instance_id)s AND to_state = 'worker_dead' AND at > now() - %(window)s * interval '1 second'
"""


@dataclass(slots=True)
class _Suspect:
    probe: asyncio.Task[ProbeResult] | None = None
    probed_at: float = float("-inf")


class WorkerWatchdog:
    """Watches until cancelled."""

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._settings = context.settings
        self._view = context.view
        self._roster = Roster(context.database, context.view)
        self._schedule: defaultdict[int, list[Ready]] = defaultdict(list)
        self._slot = int(time.monotonic() / SLOT_SECONDS)
        self._suspects: dict[str, _Suspect] = {}
        self._engines = Engines(context.settings, context.probes)
        self._probes: set[asyncio.Task[ProbeResult]] = set()
        self._refreshed_at = float("-inf")
        self._outage: str | None = None

    async def run(self) -> None:
        """For ever; without the database nothing is declared, and what was known is watched on."""
        try:
            while True:
                try:
                    await self.look(time.monotonic())
                    self._outage = None
                except UnavailableError as error:
                    if self._outage is None:
                        _log.warning("worker watchdog waits for the database", extra={"reason": str(error)})
                    self._outage = str(error)
                await asyncio.sleep(self._settings.worker_watchdog_interval_seconds)
        finally:
            await self._end_probes()
            await self._engines.close()

    async def look(self, now: float) -> None:
        """One pass. Raises UnavailableError."""
        started = time.monotonic()
        if now - self._refreshed_at >= REFRESH_SECONDS:
            # Also after a failure: one try a second is enough.
            self._refreshed_at = now
            for ready in await self._roster.refresh(now):
                self._look_at(ready, now)
            if self._context.guard.holding(NAME):
                self._context.guard.holds(NAME)
        for ready, death, evidence in self._check_due(now):
            await self._declare(ready, death, evidence, None)
        await self._judge_suspects(now)
        for dead in list(self._roster.dead.values()):
            await self._look_for_life(dead, now)
        self._context.metrics.suspects.set(len(self._suspects))
        self._context.metrics.duration_seconds.labels(NAME).observe(time.monotonic() - started)

    def _check_due(self, now: float) -> list[tuple[Ready, Death, Mapping[str, Any]]]:
        """Look at the workers whose next heartbeat should have come; returns those that are heard without an engine
        that works, with the evidence."""
        dead = []
        for ready in self._due(now):
            instance_id = ready.instance_id
            if self._roster.ready.get(instance_id) is not ready:
                self._suspects.pop(instance_id, None)
                self._engines.forget(instance_id)
                continue
            worker = self._view.get(instance_id, now)
            patience = self._patience(ready, worker, now)
            if patience > 0:
                self._suspects.pop(instance_id, None)
                if worker is not None and (found := self._death_of_engine(ready, worker, now)) is not None:
                    dead.append((ready, *found))
                self._look_at(ready, now + patience + SLACK_SECONDS)
            else:
                self._suspects.setdefault(instance_id, _Suspect())
                self._look_at(ready, now + self._settings.worker_watchdog_interval_seconds)
        return dead

    def _death_of_engine(self, ready: Ready, worker: WorkerView, now: float) -> tuple[Death, Mapping[str, Any]] | None:
        if (death := death_by_stall(self._settings, worker)) is not None:
            return death, {"engine_stalled_seconds": worker.engine_stalled_seconds, "heartbeat": worker.heartbeat}
        if (mute := self._engines.look(ready, worker, now)) is None:
            return None
        evidence = {"engine_unreachable_seconds": mute.seconds, "heartbeat": worker.heartbeat}
        return death_by_mute_engine(mute.seconds, mute.probe), {**evidence, "probe": _told(mute.probe)}

    def _look_at(self, ready: Ready, moment: float) -> None:
        """Once more at this time, or at the next look."""
        self._schedule[max(int(moment / SLOT_SECONDS), self._slot)].append(ready)

    def _due(self, now: float) -> list[Ready]:
        """Those to look at now, and the clock of the schedule goes on."""
        first, self._slot = self._slot, int(now / SLOT_SECONDS) + 1
        return [ready for slot in range(first, self._slot) for ready in self._schedule.pop(slot, ())]

    def _patience(self, ready: Ready, worker: WorkerView | None, now: float) -> float:
        """Seconds until it is silent for too long; not above 0 when it is."""
        if worker is not None and worker.heartbeat is not None and worker.heartbeat_age_seconds is not None:
            return self._settings.suspicion_intervals * worker.heartbeat.interval_seconds - worker.heartbeat_age_seconds
        return self._settings.suspicion_intervals * ASSUMED_INTERVAL_SECONDS - self._known_for(ready, now)

    def _known_for(self, ready: Ready, now: float) -> float:
        joined_for = self._view.joined_for_seconds(now) or 0.0
        return min(now - ready.since, joined_for)

    async def _judge_suspects(self, now: float) -> None:
        """Probe them, a few at a time; when many are suspect at once, it is the stream that is."""
        suspects = {name: one for name, one in self._suspects.items() if name in self._roster.ready}
        rules = self._view.rules
        many = len(suspects) >= rules.silence_least_workers and len(suspects) > rules.silence_share * len(
            self._roster.ready
        )
        for instance_id, suspect in suspects.items():
            ready = self._roster.ready[instance_id]
            if suspect.probe is not None and suspect.probe.done():
                probe, suspect.probe = suspect.probe.result(), None
                await self._judge(ready, probe, many)
            elif ready.agent_url is None:
                await self._judge(ready, None, many)
            elif not many and self._may_probe(suspect, now):
                suspect.probed_at = now
                suspect.probe = self._probe(ready.agent_url, instance_id)

    def _may_probe(self, suspect: _Suspect, now: float) -> bool:
        is_time = suspect.probe is None and now - suspect.probed_at >= PROBE_AGAIN_SECONDS
        return is_time and len(self._probes) < CONCURRENT_PROBES

    def _probe(self, agent_url: str, instance_id: str) -> asyncio.Task[ProbeResult]:
        ask = self._context.probes.http(f"{agent_url.rstrip('/')}/healthz", PROBE_SECONDS)
        task = asyncio.create_task(ask, name=f"probe of {instance_id}")
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)
        return task

    async def _judge(self, ready: Ready, probe: ProbeResult | None, many: bool) -> None:
        now = time.monotonic()
        worker = self._view.get(ready.instance_id, now)
        silence = silence_of(worker, self._known_for(ready, now), self._view.rules.stale_after_seconds)
        if silence.seconds < self._settings.suspicion_intervals * silence.interval_seconds:
            return
        others_alive = silence.seconds > self._settings.answering_silence_seconds and self._others_alive(now)
        death = death_by_silence(self._settings, silence, probe, others_alive)
        if death is None:
            return
        evidence = silence.told()
        if probe is not None:
            evidence["probe"] = _told(probe)
        await self._declare(ready, death, evidence, "many_suspects" if many else None)

    def _others_alive(self, now: float) -> bool:
        return self._view.counts(now)["alive"] > 0

    async def _declare(self, ready: Ready, death: Death, evidence: Mapping[str, Any], doubt: str | None) -> None:
        if self._context.guard.holds(NAME, doubt):
            return
        outcome = await self._move(ready.instance_id, ready.correlation_id, death, evidence)
        self._context.metrics.outcomes.labels(NAME, outcome).inc()
        self._suspects.pop(ready.instance_id, None)
        self._roster.died(ready, time.monotonic())

    async def _move(self, instance_id: str, correlation: str | None, death: Death, evidence: Mapping[str, Any]) -> str:
        """What came of it. Another process may have been faster."""
        correlation_id.set(correlation)
        try:
            async with self._context.database.transaction() as connection:
                version = await transition(
                    connection,
                    instance_id,
                    "worker_dead",
                    reason=death.reason,
                    detail=death.detail,
                    evidence=evidence,
                    actor=ACTOR,
                    from_states={"ready"},
                )
        except LifecycleError as error:
            _log.warning("dead worker not declared", extra={"instance_id": instance_id, "error": str(error)})
            return "refused"
        finally:
            correlation_id.set(None)
        if version is None:
            return "lost"
        _log.warning("worker is dead", extra={"instance_id": instance_id, "reason": death.reason})
        return "worker_dead"

    async def _look_for_life(self, dead: Dead, now: float) -> None:
        """Enough heartbeats since its death, and an engine that works, bring a worker back."""
        worker = self._view.get(dead.instance_id, now)
        if worker is None or worker.state != "alive" or worker.heartbeat is None or now < dead.quiet_until:
            return
        heard = (worker.heartbeat.boot_id, worker.heartbeat.sequence)
        age = worker.heartbeat_age_seconds
        engine = worker.heartbeat.engine
        is_since = age is not None and now - age > dead.since
        if is_since and heard not in dead.heard and len(dead.heard) < HEARTBEATS_OF_LIFE:
            dead.heard.append(heard)
        # That one is no step yet.
        if is_since and dead.step_count is None and engine is not None:
            dead.step_count = engine.step_count
        if len(dead.heard) < HEARTBEATS_OF_LIFE or worker.heartbeat.status not in ("ready", "degraded"):
            return
        if death_by_stall(self._settings, worker) is not None or stands_still(worker, dead.step_count):
            return
        if engine_is_away(dead.engine_url, worker) or await self._flaps(dead, now):
            return
        await self._revive(dead, worker)

    async def _flaps(self, dead: Dead, now: float) -> bool:
        """Whether it dies so often that it has to wait; said once for each death."""
        settings = self._settings
        parameters = {"instance_id": dead.instance_id, "window": settings.flap_window_seconds}
        ((deaths,),) = await self._context.database.rows(_DEATHS, parameters)
        quiet_until = dead.since + settings.flap_quiet_seconds
        if deaths < settings.flap_deaths or now >= quiet_until:
            return False
        dead.quiet_until = quiet_until
        self._context.metrics.circuits_opened.inc()
        detail = {"why": "it dies too often", "deaths": deaths, "seconds": quiet_until - now}
        async with self._context.database.transaction() as connection:
            await log_action(
                connection, "circuit_opened", succeeded=True, instance_id=dead.instance_id, actor=ACTOR, detail=detail
            )
        return True

    async def _revive(self, dead: Dead, worker: WorkerView) -> None:
        correlation_id.set(dead.correlation_id)
        try:
            async with self._context.database.transaction() as connection:
                await transition(
                    connection,
                    dead.instance_id,
                    "ready",
                    reason="heard_again",
                    detail=f"Its heartbeats prove it alive, {time.monotonic() - dead.since:.1f} s after its death.",
                    evidence={"heartbeat": worker.heartbeat, "heartbeats": len(dead.heard)},
                    actor=ACTOR,
                    from_states={"worker_dead"},
                )
        except LifecycleError as error:
            _log.warning("worker not revived", extra={"instance_id": dead.instance_id, "error": str(error)})
        finally:
            correlation_id.set(None)
        self._context.metrics.outcomes.labels(NAME, "alive_again").inc()
        del self._roster.dead[dead.instance_id]
        # What it is now, and its version, comes with the next look at the database.
        self._refreshed_at = float("-inf")

    async def _end_probes(self) -> None:
        probes = list(self._probes)
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)


def _told(probe: ProbeResult) -> dict[str, Any]:
    """As evidence."""
    return {"target": probe.target, "detail": probe.detail, "refused": probe.refused}
