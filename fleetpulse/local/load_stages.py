"""What a proxy load asks for over time: stages, each going in a straight line from the target before it to its own."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fleetpulse.settings import SettingsError


@dataclass(frozen=True, slots=True)
class Stage:
    """``begin`` to ``end`` are requests a second, or requests under way, over ``seconds``."""

    name: str
    seconds: float
    begin: float
    end: float

    def at(self, elapsed_seconds: float) -> float:
        """The target so long after the stage's beginning."""
        return self.begin + (self.end - self.begin) * elapsed_seconds / self.seconds

    def arrivals(self, first: float) -> Iterator[float]:
        """Seconds into the stage at which a request is due: the first when ``first`` requests have come together, and
        one for each more."""
        slope = (self.end - self.begin) / self.seconds
        total = (self.begin + self.end) / 2 * self.seconds
        wanted = first
        while wanted <= total:
            # begin * t + slope / 2 * t² = wanted, in the form that also holds without a slope.
            yield 2 * wanted / (self.begin + math.sqrt(max(0.0, self.begin**2 + 2 * slope * wanted)))
            wanted += 1


def parse(text: str) -> list[Stage]:
    """Stages written as ``NAME=SECONDS:TARGET,…``, without names as ``SECONDS:TARGET,…``. 0 seconds is a jump.

    Raises SettingsError.
    """
    stages: list[Stage] = []
    before = 0.0
    for part in text.split(","):
        name, seconds, target = _part(part.strip())
        if seconds > 0:
            stages.append(Stage(name or _name(before, target), seconds, before, target))
        before = target
    if not any(stage.begin or stage.end for stage in stages):
        raise SettingsError(f"--stages: nothing is asked for in {text!r}")
    names = [stage.name for stage in stages]
    return [
        stage
        if names.count(stage.name) == 1
        else Stage(f"{place}: {stage.name}", stage.seconds, stage.begin, stage.end)
        for place, stage in enumerate(stages, 1)
    ]


def _part(part: str) -> tuple[str, float, float]:
    name, _, rest = part.rpartition("=")
    seconds, separator, target = rest.partition(":")
    try:
        found = float(seconds.removesuffix("s")), float(target)
    except ValueError:
        separator = ""
    if not separator or not all(math.isfinite(each) and 0 <= each <= 100_000 for each in found):
        raise SettingsError(f"--stages: {part!r} is not [NAME=]SECONDS:TARGET, e.g. ramp=10:50")
    return name, *found


def _name(before: float, target: float) -> str:
    return f"hold {target:g}" if before == target else f"{before:g} to {target:g}"


def total_seconds(stages: Sequence[Stage]) -> float:
    """How long all stages take."""
    return sum(stage.seconds for stage in stages)


def target_at(stages: Sequence[Stage], elapsed_seconds: float) -> tuple[Stage, float] | None:
    """The stage at a time, and its target; None when all are over."""
    for stage in stages:
        if elapsed_seconds < stage.seconds:
            return stage, stage.at(elapsed_seconds)
        elapsed_seconds -= stage.seconds
    return None


def arrivals(stages: Sequence[Stage]) -> Iterator[tuple[float, Stage]]:
    """When each request of an open load is due, in seconds from the beginning, and in which stage that is.

    Fractions of a request are carried into the next stage.
    """
    began, carried = 0.0, 0.0
    for stage in stages:
        for elapsed in stage.arrivals(1 - carried):
            yield began + elapsed, stage
        came = carried + (stage.begin + stage.end) / 2 * stage.seconds
        carried = came - math.floor(came)
        began += stage.seconds
