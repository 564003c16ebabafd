"""Engines that do not answer beside agents that do: for how long, and whether control has an answer of them."""

import asyncio
from dataclasses import dataclass
from typing import Final

from control.jobs.framework.probes import ProbeResult, Probes
from control.jobs.framework.roster import Ready
from control.jobs.framework.silence import engine_is_away
from fleetpulse.settings import JobSettings
from fleetpulse.stream.fleet_view import WorkerView

CONCURRENT_PROBES: Final = 50


@dataclass(frozen=True, slots=True)
class Mute:
    """An engine without an answer for its agent for too long, and none for control."""

    seconds: float
    probe: ProbeResult


@dataclass(slots=True)
class _Away:
    since: float
    probe: asyncio.Task[ProbeResult] | None = None


class Engines:
    """Remembers since when each is away. Any answer, to its agent or to control, makes patience begin anew: an engine
    that is only busy misses many a question, but not all of them."""

    def __init__(self, settings: JobSettings, probes: Probes) -> None:
        self._limit_seconds = settings.engine_unreachable_seconds
        self._probes = probes
        self._away: dict[str, _Away] = {}
        self._tasks: set[asyncio.Task[ProbeResult]] = set()

    def look(self, ready: Ready, worker: WorkerView, now: float) -> Mute | None:
        """Whether the engine of a worker that is heard is gone. Control's own question is asked meanwhile, and its
        answer found by a later look."""
        if ready.engine_url is None or not engine_is_away(ready.engine_url, worker):
            self.forget(ready.instance_id)
            return None
        away = self._away.setdefault(ready.instance_id, _Away(now))
        seconds = now - away.since
        if seconds <= self._limit_seconds:
            return None
        if away.probe is None:
            if len(self._tasks) < CONCURRENT_PROBES:
                away.probe = self._ask(ready.instance_id, ready.engine_url)
            return None
        if not away.probe.done():
            return None
        # It is asked anew the next time: what holds a death up may take long.
        probe, away.probe = away.probe.result(), None
        if probe.succeeded:
            away.since = now
            return None
        return Mute(seconds, probe)

    def forget(self, instance_id: str) -> None:
        """It answers, or nobody needs to know any more."""
        away = self._away.pop(instance_id, None)
        if away is not None and away.probe is not None:
            away.probe.cancel()

    async def close(self) -> None:
        """End the questions that are under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ask(self, instance_id: str, engine_url: str) -> asyncio.Task[ProbeResult]:
        ask = self._probes.engine(f"{engine_url.rstrip('/')}/v1/models")
        task = asyncio.create_task(ask, name=f"probe of the engine of {instance_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
