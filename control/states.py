"""The states of an instance and the one table of the steps between them."""

from collections.abc import Mapping
from typing import Final

from fleetpulse.stream.lifecycle import InstanceState

# A worker may be heard before control has looked, so an instance can skip the states on the way to ready.
ALLOWED: Final[Mapping[InstanceState, frozenset[InstanceState]]] = {
    "provisioning": frozenset({"booting", "startup_failed", "terminating"}),
    "booting": frozenset({"installing", "starting", "ready", "startup_failed", "terminating"}),
    "installing": frozenset({"starting", "ready", "startup_failed", "terminating"}),
    "starting": frozenset({"ready", "startup_failed", "terminating"}),
    "ready": frozenset({"worker_dead", "draining", "terminating"}),
    "startup_failed": frozenset({"terminating"}),
    "worker_dead": frozenset({"ready", "draining", "terminating"}),
    "draining": frozenset({"ready", "terminating"}),
    "terminating": frozenset({"terminated"}),
    "terminated": frozenset({"archived"}),
    "archived": frozenset(),
}
# States in which there is, or may be, a machine that costs money.
ACTIVE: Final[frozenset[InstanceState]] = frozenset(ALLOWED) - {"terminated", "archived"}
# States on the way to the first ready.
COMING_UP: Final[tuple[InstanceState, ...]] = ("provisioning", "booting", "installing", "starting")


def is_allowed(from_state: InstanceState, to_state: InstanceState) -> bool:
    """Whether an instance may go from one state to the other."""
    return to_state in ALLOWED[from_state]
