"""Making an instance and moving it: one guarded UPDATE, a history row and a lifecycle message, in one transaction."""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.sql import SQL, Composed, Identifier, Placeholder

from control.lifecycle.errors import DuplicateInstanceError, IllegalTransitionError, NoSuchInstanceError
from control.lifecycle.evidence import plain, stored, text
from control.lifecycle.message import tell
from control.states import is_allowed
from fleetpulse.stream.lifecycle import InstanceState
from fleetpulse.telemetry import correlation_id

CHANGEABLE: Final = frozenset({"machine_id", "address", "agent_url", "engine_url", "failure"})
ID_BYTES: Final = 6

# The price is the one of now: later changes of the catalogue do not change what this instance costs.
_CREATE: Final = """
INSERT INTO instances (
    instance_id, deployment_id, organization_id, provider, zone, instance_type, model_id, state, price_per_hour,
    currency, options, correlation_id, created_by
)
SELECT
    %(instance_id)s, %(deployment_id)s, %(organization_id)s, %(provider)s, %(zone)s, %(instance_type)s, %(model_id)s,
    'provisioning', offered.price_per_hour, coalesce(offered.currency, 'EUR'), %(options)s, %(correlation_id)s,
    %(actor)s
FROM (SELECT 1) AS one
LEFT JOIN instance_types AS offered ON offered.provider = %(provider)s AND offered.instance_type = %(instance_type)s
ON CONFLICT (instance_id) DO NOTHING
RETURNING version
"""
_LOCK: Final = "SELECT state, version FROM instances WHERE instance_id = %s FOR NO KEY UPDATE"
_HISTORY: Final = """
INSERT INTO instance_transitions (
    instance_id, version, from_state, to_state, reason, detail, evidence, actor, correlation_id, at
)
SELECT instance_id, version, %(from_state)s, state, %(reason)s, %(detail)s, %(evidence)s, %(actor)s, %(correlation_id)s,
    state_since
FROM instances
WHERE instance_id = %(instance_id)s
"""


@dataclass(frozen=True)
class NewInstance:
    """An instance to make. An id is made up unless one is given; ``options`` are the provider's own."""

    organization_id: UUID
    provider: str
    zone: str
    instance_type: str
    model_id: UUID | None = None
    deployment_id: UUID | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    instance_id: str | None = None


async def create(connection: AsyncConnection[Any], wanted: NewInstance, *, actor: str) -> str:
    """Write an instance in the state provisioning; the provisioning job makes its machine. Returns its id.

    Raises DuplicateInstanceError, and psycopg's ForeignKeyViolation for an unknown organisation, model or deployment.
    """
    instance_id = wanted.instance_id or f"i-{secrets.token_hex(ID_BYTES)}"
    cursor = await connection.execute(
        _CREATE,
        {
            "instance_id": instance_id,
            "deployment_id": wanted.deployment_id,
            "organization_id": wanted.organization_id,
            "provider": wanted.provider,
            "zone": wanted.zone,
            "instance_type": wanted.instance_type,
            "model_id": wanted.model_id,
            "options": stored(wanted.options),
            "correlation_id": correlation_id.get(),
            "actor": actor,
        },
    )
    if await cursor.fetchone() is None:
        raise DuplicateInstanceError(instance_id)
    detail = f"An instance of type {wanted.instance_type} at {wanted.provider} in {wanted.zone} was asked for."
    await _record(connection, instance_id, None, "requested", detail, {}, actor)
    return instance_id


async def transition(
    connection: AsyncConnection[Any],
    instance_id: str,
    to_state: InstanceState,
    *,
    reason: str,
    detail: str,
    evidence: Mapping[str, Any],
    actor: str,
    from_states: Collection[InstanceState] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> int | None:
    """Move an instance; returns its new version, or None when another one was faster.

    That is when it is in none of ``from_states`` any more, or in ``to_state`` already. ``changes`` are further columns
    of the instance. Raises IllegalTransitionError and NoSuchInstanceError.
    """
    cursor = await connection.execute(_LOCK, (instance_id,))
    row = await cursor.fetchone()
    if row is None:
        raise NoSuchInstanceError(instance_id)
    from_state, version = row
    if from_state == to_state or (from_states is not None and from_state not in from_states):
        return None
    if not is_allowed(from_state, to_state):
        raise IllegalTransitionError(instance_id, from_state, to_state)
    changes = plain(changes or {})
    moved = await connection.execute(
        _update(changes),
        {**changes, "to_state": to_state, "instance_id": instance_id, "from_state": from_state, "version": version},
    )
    if moved.rowcount != 1:
        return None
    await _record(connection, instance_id, from_state, reason, detail, evidence, actor)
    return int(version) + 1


def _update(changes: Mapping[str, Any]) -> Composed:
    """The guarded UPDATE."""
    if unknown := set(changes) - CHANGEABLE:
        raise ValueError(f"a transition does not change {', '.join(sorted(unknown))}")
    assignments = [SQL("{} = {}").format(Identifier(name), Placeholder(name)) for name in sorted(changes)]
    return SQL(
        "UPDATE instances SET state = %(to_state)s, version = version + 1, state_since = clock_timestamp(),"
        " ready_at = CASE WHEN %(to_state)s = 'ready' THEN coalesce(ready_at, clock_timestamp()) ELSE ready_at END,"
        " terminated_at = CASE WHEN %(to_state)s = 'terminated' THEN clock_timestamp() ELSE terminated_at END{}"
        " WHERE instance_id = %(instance_id)s AND state = %(from_state)s AND version = %(version)s"
    ).format(SQL("").join([SQL(", ") + assignment for assignment in assignments]))


async def _record(
    connection: AsyncConnection[Any],
    instance_id: str,
    from_state: InstanceState | None,
    reason: str,
    detail: str,
    evidence: Mapping[str, Any],
    actor: str,
) -> None:
    """The history row and the message of the step just made."""
    await connection.execute(
        _HISTORY,
        {
            "instance_id": instance_id,
            "from_state": from_state,
            "reason": reason,
            "detail": text(detail),
            "evidence": stored(evidence),
            "actor": actor,
            "correlation_id": correlation_id.get(),
        },
    )
    await tell(connection, instance_id, from_state, reason)
