"""Whether the pipeline is well enough to conclude anything from silence; destructive jobs ask before they act."""

import time
from typing import Final

from control.follower import is_following
from control.jobs.framework.metrics import JobMetrics
from fleetpulse.stream.consumer import StreamReader
from fleetpulse.stream.fleet_view import FleetView
from fleetpulse.telemetry import logger

_log = logger(__name__)

# Telling mass silence means a look at every worker; in between the answer stands.
FRESH_SECONDS: Final = 0.2


class Guard:
    """Says why destructive actions must wait, if they must, and keeps the metric and the log of who waits."""

    def __init__(self, view: FleetView, reader: StreamReader, metrics: JobMetrics) -> None:
        self._view = view
        self._reader = reader
        self._metrics = metrics
        self._reason: str | None = None
        self._looked_at = float("-inf")
        self._holding: dict[str, str] = {}

    def reason(self) -> str | None:
        """Why silence proves nothing now: not_following, just_joined, many_silent; None when it does."""
        now = time.monotonic()
        if now - self._looked_at >= FRESH_SECONDS:
            self._looked_at = now
            self._reason = self._look(now)
        return self._reason

    def holds(self, job: str, doubt: str | None = None) -> bool:
        """Whether a job must hold still, for its own doubt or for the pipeline's sake. Says so when that changes."""
        reason = self.reason() or doubt
        before = self._holding.get(job)
        if reason == before:
            return reason is not None
        if before is not None:
            self._metrics.holding_still.labels(job, before).set(0)
            del self._holding[job]
        if reason is None:
            _log.info("job acts again", extra={"job": job})
            return False
        self._holding[job] = reason
        self._metrics.holding_still.labels(job, reason).set(1)
        _log.warning("job holds still", extra={"job": job, "reason": reason})
        return True

    def holding(self, job: str) -> bool:
        """Whether the job held still the last time it asked."""
        return job in self._holding

    def _look(self, now: float) -> str | None:
        if not is_following(self._reader, self._view):
            return "not_following"
        silence = self._view.mass_silence(now)
        return silence.reason if silence.active else None
