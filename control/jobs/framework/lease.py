"""Holding an item for a transaction: what its lease is worth."""

from typing import Any, Final

from psycopg import AsyncConnection

from control.jobs.framework.item import Item, LostLeaseError

Connection = AsyncConnection[Any]

_LOCK_INSTANCE: Final = "SELECT FROM instances WHERE instance_id = %s FOR NO KEY UPDATE"
_HOLD: Final = """
SELECT FROM job_work
WHERE subject = %s AND job = %s AND token = %s AND owner IS NOT NULL AND lease_until > clock_timestamp()
FOR UPDATE
"""


async def hold(connection: Connection, item: Item) -> None:
    """Keep the item until the transaction ends. Raises LostLeaseError when it is no longer ours."""
    if item.instance is not None:
        await connection.execute(_LOCK_INSTANCE, (item.subject,))
    cursor = await connection.execute(_HOLD, (item.subject, item.job, item.token))
    if await cursor.fetchone() is None:
        raise LostLeaseError(f"{item.job} of {item.subject} is no longer ours")
