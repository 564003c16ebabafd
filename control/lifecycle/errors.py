"""What can be wrong with a step of an instance's life; the messages are for people."""

from fleetpulse.stream.lifecycle import InstanceState


class LifecycleError(Exception):
    """A step that cannot be made."""


class NoSuchInstanceError(LifecycleError):
    """There is no instance of this id."""

    def __init__(self, instance_id: str) -> None:
        super().__init__(f"there is no instance {instance_id}")
        self.instance_id = instance_id


class DuplicateInstanceError(LifecycleError):
    """There is an instance of this id already."""

    def __init__(self, instance_id: str) -> None:
        super().__init__(f"there is an instance {instance_id} already: choose another id, or none")
        self.instance_id = instance_id


class IllegalTransitionError(LifecycleError):
    """No way leads from the one state to the other."""

    def __init__(self, instance_id: str, from_state: InstanceState, to_state: InstanceState) -> None:
        super().__init__(f"instance {instance_id} is {from_state} and cannot become {to_state}")
        self.instance_id = instance_id
        self.from_state = from_state
        self.to_state = to_state
