"""The lifecycle message of an instance as it is in this transaction, put into the outbox."""

from typing import Any, Final

from psycopg import AsyncConnection

from fleetpulse.stream import lifecycle
from fleetpulse.stream.lifecycle import InstanceState, LifecycleEvent

# Whoever listens on it need not wait for its next look at the outbox.
CHANNEL: Final = "fleetpulse_lifecycle"

_SELECT: Final = """
SELECT
    i.version, i.state, (extract(epoch FROM i.state_since) * 1e9)::bigint, i.organization_id::text, i.provider, i.zone,
    i.instance_type, i.deployment_id::text, i.model_id::text, m.hugging_face_id, i.agent_url, i.engine_url,
    i.price_per_hour::float8, i.currency, i.correlation_id
FROM instances AS i
LEFT JOIN models AS m USING (model_id)
WHERE i.instance_id = %s
"""
# A null message is a tombstone: the topic is compacted, and an archived instance is to vanish from it.
_INSERT: Final = """
WITH put AS (
    INSERT INTO lifecycle_outbox (instance_id, message)
    SELECT %(instance_id)s, message FROM unnest(%(messages)s::bytea[]) AS message
)
SELECT pg_notify(%(channel)s, '')
"""


async def tell(
    connection: AsyncConnection[Any], instance_id: str, previous_state: InstanceState | None, reason: str
) -> None:
    """Write the instance's message, and the tombstone after that of an archived one."""
    cursor = await connection.execute(_SELECT, (instance_id,))
    row = await cursor.fetchone()
    assert row is not None, "the caller has just written the instance"
    event = LifecycleEvent(
        instance_id=instance_id,
        version=row[0],
        state=row[1],
        previous_state=previous_state,
        reason=reason,
        at_unix_nano=row[2],
        organization_id=row[3],
        provider=row[4],
        zone=row[5],
        instance_type=row[6],
        deployment_id=row[7],
        model_id=row[8],
        model=row[9],
        agent_url=row[10],
        engine_url=row[11],
        price_per_hour=row[12],
        currency=row[13],
        correlation_id=row[14],
    )
    messages = [lifecycle.encode(event), *([None] if event.state == "archived" else [])]
    await connection.execute(_INSERT, {"instance_id": instance_id, "messages": messages, "channel": CHANNEL})
