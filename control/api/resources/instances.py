"""``/instances``: the fleet as control sees it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final
from uuid import UUID

import msgspec
from pydantic import Field

from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Code, ModelName, Nothing, Page
from control.api.paging import Name, after, next_cursor
from control.api.problems import ProblemError
from control.database import Row
from fleetpulse.stream.lifecycle import InstanceState

TAG: Final = "Instances"


class Instance(msgspec.Struct, frozen=True):
    """One instance. ``state_since`` is when it entered its state; ``version`` counts its transitions."""

    instance_id: str
    deployment_id: UUID | None
    organization_id: UUID
    provider: str
    zone: str
    instance_type: str
    model_id: UUID | None
    model: str | None
    state: InstanceState
    state_since: datetime
    version: int
    machine_id: str | None
    address: str | None
    agent_url: str | None
    engine_url: str | None
    price_per_hour: float | None
    currency: str
    failure: str | None
    correlation_id: str | None
    created_by: str
    created_at: datetime
    ready_at: datetime | None
    terminated_at: datetime | None


class Instances(msgspec.Struct, frozen=True):
    """A part of the list, newest first."""

    instances: Sequence[Instance]
    next_cursor: str | None


class InstancesQuery(Page):
    """Which instances."""

    repeatable: ClassVar = ("state",)
    state: Annotated[list[InstanceState] | None, Field(description="Only in these states; may be repeated")] = None
    provider: Annotated[Code | None, Field(description="Only at this provider")] = None
    model: Annotated[ModelName | None, Field(description="Only with this model: its UUID or Hugging Face id")] = None
    deployment: Annotated[UUID | None, Field(description="Only of this deployment")] = None


_SELECT: Final = """
SELECT i.instance_id, i.deployment_id, i.organization_id, i.provider, i.zone, i.instance_type, i.model_id,
    m.hugging_face_id, i.state, i.state_since, i.version, i.machine_id, i.address, i.agent_url, i.engine_url,
    i.price_per_hour::float8, i.currency, i.failure, i.correlation_id, i.created_by, i.created_at, i.ready_at,
    i.terminated_at
FROM instances AS i LEFT JOIN models AS m USING (model_id)
"""
# The index on (created_at DESC, instance_id) gives the order, so that a page costs what a page costs.
_LIST: Final = (
    _SELECT
    + """
WHERE (%(organization_id)s::uuid IS NULL OR i.organization_id = %(organization_id)s)
    AND (%(states)s::text[] IS NULL OR i.state = ANY (%(states)s))
    AND (%(provider)s::text IS NULL OR i.provider = %(provider)s)
    AND (%(model)s::text IS NULL OR m.hugging_face_id = %(model)s OR m.model_id::text = lower(%(model)s))
    AND (%(deployment_id)s::uuid IS NULL OR i.deployment_id = %(deployment_id)s)
    AND (%(after_time)s::timestamptz IS NULL OR (
        i.created_at <= %(after_time)s AND (i.created_at < %(after_time)s OR i.instance_id > %(after_id)s)
    ))
ORDER BY i.created_at DESC, i.instance_id LIMIT %(rows)s
"""
)
ONE: Final = (
    _SELECT
    + """
WHERE i.instance_id = %(instance_id)s
    AND (%(organization_id)s::uuid IS NULL OR i.organization_id = %(organization_id)s)
"""
)


async def instances(call: Call[InstancesQuery, Nothing]) -> Instances:
    """The list."""
    query = call.query
    place = after(query, tuple[datetime, Name])
    rows = await call.parts.database.rows(
        _LIST,
        {
            "organization_id": call.caller.only_organization,
            "states": query.state,
            "provider": query.provider,
            "model": query.model,
            "deployment_id": query.deployment,
            "after_time": place[0] if place else None,
            "after_id": place[1] if place else None,
            "rows": query.limit + 1,
        },
    )
    shown = [Instance(*row) for row in rows[: query.limit]]
    cursor = next_cursor(rows, query, (shown[-1].created_at, shown[-1].instance_id) if shown else None)
    return Instances(shown, cursor)


async def instance(call: Call[Nothing, Nothing]) -> Instance:
    """One."""
    return Instance(*await found(call))


async def found(call: Call[Any, Any]) -> Row:
    """The row of the instance in the path, if the caller may see it. Raises ProblemError (404)."""
    instance_id = call.path["instance_id"]
    rows = await call.parts.database.rows(
        ONE, {"instance_id": instance_id, "organization_id": call.caller.only_organization}
    )
    if not rows:
        raise missing(instance_id)
    return rows[0]


def missing(instance_id: str) -> ProblemError:
    """404."""
    return ProblemError(404, f"there is no instance {instance_id}")


ENDPOINTS: Final = (
    Endpoint("GET", "/instances", "Instances, newest first", TAG, instances),
    Endpoint("GET", "/instances/{instance_id}", "One instance", TAG, instance),
)
