"""What a worker's own failures say about it: remembered across requests, for longer each time it fails again."""

from dataclasses import dataclass
from typing import Final

# A worker that behaved for this many of its last pauses is as good as new.
_FORGIVEN_AFTER_PAUSES: Final = 10.0


@dataclass(frozen=True, slots=True)
class EjectionRules:
    """Thresholds, as in the settings."""

    seconds: float = 1.0
    most_seconds: float = 120.0
    failures: int = 5


@dataclass(slots=True)
class Ejection:
    """One worker's record. Times are monotonic seconds."""

    until: float = 0.0
    times: int = 0
    """Ejections in a row; each doubles the next pause."""
    failures: int = 0
    """Failures in a row since the last success."""
    pause_seconds: float = 0.0

    def is_out(self, now: float) -> bool:
        """Whether requests should go elsewhere."""
        return now < self.until

    def succeeded(self, now: float) -> None:
        """It answered a request. Its past is forgotten only after a while: a worker may be well now and then."""
        self.failures = 0
        if self.times and now - self.until > _FORGIVEN_AFTER_PAUSES * self.pause_seconds:
            self.times = 0

    def failed(self, now: float, lost: bool, rules: EjectionRules) -> bool:
        """It failed a request; ``lost`` is a connection refused or lost. Returns whether that ejects it anew.

        After a pause one failure is enough: the first requests that come back to it are the probe.
        """
        self.failures += 1
        if self.is_out(now) or not (lost or self.times or self.failures >= rules.failures):
            return False
        self.pause_seconds = min(rules.seconds * 2.0**self.times, rules.most_seconds)
        self.until = now + self.pause_seconds
        # Bounded, or the power of two would overflow one day.
        self.times = min(self.times + 1, 32)
        self.failures = 0
        return True
