"""Who fell silent, among the workers whose heartbeats this collector reads."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

from collector.metrics import CollectorMetrics
from fleetpulse.stream.fleet_view import STATES, FleetRules, FleetView
from fleetpulse.stream.heartbeat import Heartbeat
from fleetpulse.telemetry import logger

_log = logger(__name__)

CHECK_SECONDS: Final = 1.0
# A metric label for each stale worker: bounded, for when the whole fleet is silent one count says it all.
MOST_NAMED_WORKERS: Final = 500


class Staleness:
    """Feeds a FleetView and shows what it says as metrics; a worker that falls silent or comes back is logged once."""

    def __init__(self, stale_after_seconds: float, metrics: CollectorMetrics) -> None:
        self._view = FleetView(FleetRules(stale_after_seconds=stale_after_seconds))
        self._view.join(time.monotonic())
        self._metrics = metrics
        self._stale: set[tuple[str, str]] = set()

    def heard(self, heartbeats: Iterable[Heartbeat]) -> None:
        """Take note of heartbeats read just now."""
        now, wall = time.monotonic(), time.time()
        for heartbeat in heartbeats:
            self._view.observe(heartbeat, now, wall)

    async def run(self, problem: Callable[[], str | None]) -> None:
        """Check once a second, for ever. While ``problem`` tells one, nothing is being read, and silence means
        nothing."""
        following = True
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if (problem() is None) != following:
                following = not following
                self._view.join(time.monotonic()) if following else self._view.leave()
            self.check(time.monotonic())

    def check(self, now_monotonic: float) -> None:
        """Bring the metrics up to date."""
        counts = self._view.counts(now_monotonic)
        for state in STATES:
            self._metrics.workers.labels(state).set(counts.get(state, 0))
        silence = self._view.mass_silence(now_monotonic)
        self._metrics.mass_silence.set(int(silence.active))
        if not counts.get("stale", 0) and not self._stale:
            return
        ages = {
            (worker.worker_id, worker.instance_id): worker.heartbeat_age_seconds or 0.0
            for worker in self._view.snapshot(now_monotonic)
            if worker.state == "stale"
        }
        for name in sorted(ages.keys() - self._stale):
            _log.warning(
                "worker stale", extra={"worker_id": name[0], "instance_id": name[1], "age_seconds": ages[name]}
            )
        for name in sorted(self._stale - ages.keys()):
            _log.info("worker no longer stale", extra={"worker_id": name[0], "instance_id": name[1]})
        self._stale = set(ages)
        self._metrics.heartbeat_age.clear()
        for name in sorted(ages)[:MOST_NAMED_WORKERS]:
            self._metrics.heartbeat_age.labels(*name).set(ages[name])
