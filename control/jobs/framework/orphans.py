"""Machines that nobody owns: found in the inventory and by heartbeats, kept account of with what they cost, deleted
after a grace."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from control.jobs.framework.calls import call
from control.jobs.framework.context import JobContext
from control.jobs.framework.inventories import Inventory
from control.jobs.framework.item import Item
from control.jobs.framework.owners import Owner, owners_of
from control.providers.interface import Machine, ProviderError
from control.states import ACTIVE
from fleetpulse.telemetry import logger

_log = logger(__name__)

_KEEP: Final = """
INSERT INTO orphan_machines AS o (
    provider, zone, machine_id, instance_id, instance_type, status, ours, price_per_hour, currency
)
VALUES (
    %(provider)s, %(zone)s, %(machine_id)s, %(instance_id)s, %(instance_type)s, %(status)s, %(ours)s,
    coalesce(%(price_per_hour)s, (
        SELECT price_per_hour FROM instance_types WHERE provider = %(provider)s AND instance_type = %(instance_type)s
    )),
    coalesce(%(currency)s, (
        SELECT currency FROM instance_types WHERE provider = %(provider)s AND instance_type = %(instance_type)s
    ))
)
ON CONFLICT (provider, zone, machine_id) DO UPDATE SET
    status = EXCLUDED.status, ours = EXCLUDED.ours, last_seen_at = now(), resolved_at = NULL,
    first_seen_at = CASE WHEN o.resolved_at IS NULL THEN o.first_seen_at ELSE now() END
RETURNING o.first_seen_at = o.last_seen_at, extract(epoch FROM now() - o.first_seen_at)::float8
"""
_RESOLVE: Final = """
UPDATE orphan_machines SET resolved_at = now()
WHERE provider = %s AND resolved_at IS NULL AND NOT (machine_id = ANY(%s))
"""
# The last heartbeats of a machine that is being deleted are no sign of life.
_HEARD: Final = """
SELECT machine_id, zone, instance_id, instance_type, price_per_hour, currency FROM instances
WHERE provider = %(provider)s AND instance_id = ANY(%(heard)s) AND machine_id IS NOT NULL
    AND state IN ('terminated', 'archived') AND state_since < now() - interval '1 minute'
"""
_COSTS: Final = """
SELECT coalesce(currency, ''), count(*) FILTER (WHERE resolved_at IS NULL),
    coalesce(sum(price_per_hour) FILTER (WHERE resolved_at IS NULL), 0)::float8
FROM orphan_machines
WHERE provider = %(provider)s
GROUP BY currency
"""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A machine without an owner. ``ours`` is whether its instance is known here and over."""

    machine: Machine
    ours: bool
    price_per_hour: Decimal | None
    currency: str | None


def find(inventory: Inventory, owners: Mapping[str, Owner]) -> list[Orphan]:
    """Machines that are neither an active instance's machine nor tagged with one that has none yet."""
    taken = {owner.machine_id for owner in owners.values() if owner.state in ACTIVE}
    found = []
    for machine in inventory.machines.values():
        owner = owners.get(machine.instance_id) if machine.instance_id is not None else None
        expects_it = owner is not None and owner.state in ACTIVE and owner.machine_id in (None, machine.machine_id)
        if machine.machine_id in taken or expects_it:
            continue
        # Known, with another machine or a life that is over: nobody else can want this one.
        price, currency = (owner.price_per_hour, owner.currency) if owner is not None else (None, None)
        found.append(Orphan(machine, owner is not None, price, currency))
    return found


async def keep_account(context: JobContext, item: Item, inventory: Inventory, *, may_delete: bool) -> None:
    """Write down a provider's orphans, and delete those whose grace is over. Raises UnavailableError."""
    machines = list(inventory.machines.values())
    ids = [machine.instance_id for machine in machines if machine.instance_id is not None]
    owners = await owners_of(context.database, item.subject, ids, [machine.machine_id for machine in machines])
    orphans = [*find(inventory, owners), *await _heard(context, item.subject, inventory)]
    over = await _keep(context, item, orphans)
    for orphan in over if may_delete else ():
        await _delete(context, item, orphan)
    await _measure(context, item.subject)


async def _heard(context: JobContext, provider: str, inventory: Inventory) -> list[Orphan]:
    """Machines of instances that are over, which the provider does not list and whose agents are alive: it still runs
    them, whatever it says."""
    heard = [worker.instance_id for worker in context.view.snapshot(time.monotonic()) if worker.state == "alive"]
    rows = await context.database.rows(_HEARD, {"provider": provider, "heard": heard})
    return [
        Orphan(Machine(machine_id, zone, instance_id, instance_type, "heard"), True, price, currency)
        for machine_id, zone, instance_id, instance_type, price, currency in rows
        if (zone, machine_id) not in inventory.machines
    ]


async def _keep(context: JobContext, item: Item, orphans: Sequence[Orphan]) -> list[Orphan]:
    """Those whose grace is over."""
    over = []
    async with context.fenced(item) as connection:
        for orphan in orphans:
            cursor = await connection.execute(_KEEP, _row(item.subject, orphan))
            row = await cursor.fetchone()
            assert row is not None
            if row[0]:
                told = {"provider": item.subject, "machine_id": orphan.machine.machine_id, "ours": orphan.ours}
                _log.warning("machine that no instance owns", extra=told)
            grace = context.settings.leftover_grace_seconds if orphan.ours else context.settings.orphan_grace_seconds
            if grace is not None and row[1] >= grace:
                over.append(orphan)
        await connection.execute(_RESOLVE, (item.subject, [orphan.machine.machine_id for orphan in orphans]))
    return over


def _row(provider: str, orphan: Orphan) -> dict[str, Any]:
    machine = orphan.machine
    return {
        "provider": provider,
        "zone": machine.zone,
        "machine_id": machine.machine_id,
        "instance_id": machine.instance_id,
        "instance_type": machine.instance_type,
        "status": machine.status,
        "ours": orphan.ours,
        "price_per_hour": orphan.price_per_hour,
        "currency": orphan.currency,
    }


async def _delete(context: JobContext, item: Item, orphan: Orphan) -> None:
    """The next inventory shows whether it is gone; until then it stays an orphan and is deleted again."""
    machine, name = orphan.machine, item.subject
    try:
        await call(
            context,
            item,
            "delete",
            name,
            context.providers[name].delete(machine),
            lambda _: {"machine_id": machine.machine_id, "instance_id": machine.instance_id, "orphan": True},
        )
    except ProviderError as error:
        _log.warning("orphan not deleted", extra={"machine_id": machine.machine_id, "error": str(error)})


async def _measure(context: JobContext, provider: str) -> None:
    rows = await context.database.rows(_COSTS, {"provider": provider})
    context.metrics.orphan_machines.labels(provider).set(sum(count for _, count, _ in rows))
    for currency, _, price in rows:
        context.metrics.orphan_price.labels(provider, currency).set(price)
