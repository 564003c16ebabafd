"""The action log: every critical act of control, calls of providers included."""

from collections.abc import Mapping
from typing import Any, Final

from psycopg import AsyncConnection

from control.lifecycle.evidence import stored
from fleetpulse.telemetry import correlation_id

_INSERT: Final = """
INSERT INTO action_log (action, succeeded, instance_id, provider, actor, duration_seconds, detail, correlation_id)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
"""


async def log_action(
    connection: AsyncConnection[Any],
    action: str,
    *,
    succeeded: bool,
    instance_id: str | None = None,
    provider: str | None = None,
    actor: str,
    duration_seconds: float | None = None,
    detail: Mapping[str, Any] = {},
) -> None:
    """Write one act, under the correlation id of the request or job that it belongs to."""
    row = (action, succeeded, instance_id, provider, actor, duration_seconds, stored(detail), correlation_id.get())
    await connection.execute(_INSERT, row)
