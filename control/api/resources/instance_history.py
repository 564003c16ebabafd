"""What happened to an instance: its transitions with their evidence, and what was done for it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Nothing, Page
from control.api.paging import Number, after, next_cursor
from control.api.resources.actions import Actions, page_of_actions
from control.api.resources.instances import TAG, found
from fleetpulse.stream.lifecycle import InstanceState


class Transition(msgspec.Struct, frozen=True):
    """One step. ``evidence`` is what caused it: heartbeats, probe results, provider answers."""

    version: int
    from_state: InstanceState | None
    to_state: InstanceState
    reason: str
    detail: str
    evidence: dict[str, Any]
    actor: str
    correlation_id: str | None
    at: datetime


class Transitions(msgspec.Struct, frozen=True):
    """Steps, oldest first."""

    transitions: Sequence[Transition]
    next_cursor: str | None


_TRANSITIONS: Final = """
SELECT version, from_state, to_state, reason, detail, evidence, actor, correlation_id, at
FROM instance_transitions
WHERE instance_id = %(instance_id)s AND version > %(after)s
ORDER BY version LIMIT %(rows)s
"""


async def transitions(call: Call[Page, Nothing]) -> Transitions:
    """The history."""
    await found(call)
    place = after(call.query, tuple[Number])
    rows = await call.parts.database.rows(
        _TRANSITIONS,
        {"instance_id": call.path["instance_id"], "after": place[0] if place else 0, "rows": call.query.limit + 1},
    )
    shown = [Transition(*row) for row in rows[: call.query.limit]]
    return Transitions(shown, next_cursor(rows, call.query, (shown[-1].version,) if shown else None))


async def actions(call: Call[Page, Nothing]) -> Actions:
    """What was done for it."""
    await found(call)
    return await page_of_actions(call.parts.database, call.query, instance_id=call.path["instance_id"])


ENDPOINTS: Final = (
    Endpoint("GET", "/instances/{instance_id}/transitions", "Its states, with the evidence", TAG, transitions),
    Endpoint("GET", "/instances/{instance_id}/actions", "What was done for it, newest first", TAG, actions),
)
