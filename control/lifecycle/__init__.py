"""The life of an instance: made, moved from state to state, and told to the stream. See docs/jobs.md."""

from control.lifecycle.errors import (
    DuplicateInstanceError,
    IllegalTransitionError,
    LifecycleError,
    NoSuchInstanceError,
)
from control.lifecycle.transition import NewInstance, create, transition

__all__ = [
    "DuplicateInstanceError",
    "IllegalTransitionError",
    "LifecycleError",
    "NewInstance",
    "NoSuchInstanceError",
    "create",
    "transition",
]
