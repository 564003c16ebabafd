"""What providers say, as it can be stored: their words are their own, of any length and with any characters in them."""

from dataclasses import replace

from control.lifecycle.evidence import line
from control.providers.interface import Machine, Volume


def machine(one: Machine) -> Machine:
    """A machine as it is known here."""
    return replace(
        one,
        machine_id=line(one.machine_id),
        zone=line(one.zone),
        instance_id=_optional(one.instance_id),
        instance_type=_optional(one.instance_type),
        status=line(one.status),
    )


def volume(one: Volume) -> Volume:
    """A volume as it is known here."""
    return replace(
        one,
        volume_id=line(one.volume_id),
        zone=line(one.zone),
        name=line(one.name),
        machine_id=_optional(one.machine_id),
        instance_id=_optional(one.instance_id),
    )


def _optional(said: str | None) -> str | None:
    return None if said is None else line(said)
