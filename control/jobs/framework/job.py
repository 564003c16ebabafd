"""What a job is."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from control.jobs.framework.context import JobContext
from control.jobs.framework.item import Item, Outcome
from fleetpulse.stream.lifecycle import InstanceState

FLEET: Final = "fleet"
"""The one subject of a job per fleet."""

Work = Callable[[JobContext, Item], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class Job:
    """A job: what it looks after, and the function that works on one item."""

    name: str
    work: Work
    timeout_seconds: float
    retry_seconds: float
    """First pause after a failure; each further one doubles it."""
    most_seconds: float
    """Longest pause after a failure."""
    per: Literal["instance", "provider", "fleet"] = "instance"
    """What an item is."""
    states: Sequence[InstanceState] = ()
    """Of instances, those that it looks after."""
    delay_seconds: float = 0.0
    """From an instance's entry into a state to its first work."""
