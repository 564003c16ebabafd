"""Which machine belongs to which instance, as the database knows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from control.database import Database
from fleetpulse.stream.lifecycle import InstanceState

MachineKey = tuple[str, str]
"""Zone and machine id."""

# Those that should be there; of one that is being terminated, either may be true.
_MACHINES: Final = """
SELECT zone, machine_id, instance_id, state, extract(epoch FROM clock_timestamp() - state_since)::float8
FROM instances
WHERE provider = %(provider)s AND machine_id IS NOT NULL
    AND state NOT IN ('provisioning', 'terminating', 'terminated', 'archived')
"""
_OWNERS: Final = """
SELECT instance_id, state, machine_id, price_per_hour, currency FROM instances
WHERE instance_id = ANY(%(instance_ids)s) OR (
    provider = %(provider)s AND machine_id = ANY(%(machine_ids)s) AND state NOT IN ('terminated', 'archived')
)
"""


@dataclass(frozen=True, slots=True)
class OwnedMachine:
    """The instance of a machine that should be there."""

    instance_id: str
    state: InstanceState
    state_seconds: float


@dataclass(frozen=True, slots=True)
class Owner:
    """An instance that a machine's tags name, or that has the machine's id."""

    instance_id: str
    state: InstanceState
    machine_id: str | None
    price_per_hour: Decimal | None
    currency: str


async def machines_of(database: Database, provider: str) -> Mapping[MachineKey, OwnedMachine]:
    """Machines that the provider should have. Raises UnavailableError."""
    rows = await database.rows(_MACHINES, {"provider": provider})
    return {(row[0], row[1]): OwnedMachine(row[2], row[3], row[4]) for row in rows}


async def owners_of(
    database: Database, provider: str, instance_ids: list[str], machine_ids: list[str]
) -> Mapping[str, Owner]:
    """Instances of these ids, and those that have these machines, by id. Raises UnavailableError."""
    rows = await database.rows(
        _OWNERS, {"provider": provider, "instance_ids": instance_ids, "machine_ids": machine_ids}
    )
    return {row[0]: Owner(*row) for row in rows}
