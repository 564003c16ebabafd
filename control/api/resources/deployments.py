"""``/deployments``: asking for instances, and what became of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from pydantic import Field

from control.access.organizations import organization_of
from control.actions import log_action
from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Body, Code, ModelName, Nothing, Options, Page, Text
from control.api.models import Model, resolve
from control.api.paging import after, next_cursor
from control.api.problems import FieldError, ProblemError, unprocessable
from control.api.progress import Progress, Subject, expected_seconds, progress, together
from control.lifecycle import NewInstance, create
from fleetpulse.stream.lifecycle import InstanceState
from fleetpulse.telemetry import correlation_id

TAG: Final = "Deployments"


class NewDeployment(Body):
    """Instances to make, all alike."""

    provider: Code
    zone: Text
    instance_type: Text
    model: Annotated[
        ModelName | None, Field(description="Model to serve: UUID, Hugging Face id, alias or offering")
    ] = None
    count: Annotated[int, Field(ge=1, le=500, description="How many instances")] = 1
    name: Annotated[Text | None, Field(description="For people; made of what is asked for when missing")] = None
    options: Options = Field(default_factory=dict, description="The provider's own options")


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. ``states`` counts its instances by state."""

    deployment_id: UUID
    organization_id: UUID
    name: str
    model_id: UUID | None
    model: str | None
    provider: str
    zone: str
    instance_type: str
    instance_count: int
    created_by: str
    correlation_id: str | None
    created_at: datetime
    states: Mapping[InstanceState, int]


class DeploymentProgress(Deployment, frozen=True, kw_only=True):
    """What was asked for, and how far it is. ``percent`` and the time are of all its instances together."""

    percent: float | None
    expected_remaining_seconds: float | None
    instances: Sequence[Progress]


class Deployments(msgspec.Struct, frozen=True):
    """A part of the list, newest first."""

    deployments: Sequence[Deployment]
    next_cursor: str | None


_OFFERED: Final = """
SELECT
    (SELECT array_agg(provider ORDER BY provider) FROM providers),
    (SELECT available FROM zones WHERE provider = %(provider)s AND zone = %(zone)s),
    (SELECT available FROM instance_types WHERE provider = %(provider)s AND instance_type = %(instance_type)s),
    (SELECT %(zone)s = ANY (zones) FROM instance_types
        WHERE provider = %(provider)s AND instance_type = %(instance_type)s)
"""
_INSERT: Final = """
INSERT INTO deployments (
    organization_id, name, model_id, provider, zone, instance_type, instance_count, created_by, correlation_id
) VALUES (
    %(organization_id)s, %(name)s, %(model_id)s, %(provider)s, %(zone)s, %(instance_type)s, %(count)s, %(actor)s,
    %(correlation_id)s
) RETURNING deployment_id, created_at
"""
_LIST: Final = """
SELECT d.deployment_id, d.organization_id, d.name, d.model_id, m.hugging_face_id, d.provider, d.zone, d.instance_type,
    d.instance_count, d.created_by, d.correlation_id, d.created_at, coalesce(counted.states, '{}')
FROM deployments AS d LEFT JOIN models AS m USING (model_id) CROSS JOIN LATERAL (
    SELECT jsonb_object_agg(state, number) AS states FROM (
        SELECT state, count(*) AS number FROM instances AS i WHERE i.deployment_id = d.deployment_id GROUP BY state
    ) AS each_state
) AS counted
WHERE (%(organization_id)s::uuid IS NULL OR d.organization_id = %(organization_id)s)
    AND (%(deployment_id)s::uuid IS NULL OR d.deployment_id = %(deployment_id)s)
    AND (%(after_time)s::timestamptz IS NULL
        OR (d.created_at, d.deployment_id) < (%(after_time)s, %(after_id)s::uuid))
ORDER BY d.created_at DESC, d.deployment_id DESC LIMIT %(rows)s
"""
_INSTANCES: Final = """
SELECT instance_id, state, state_since, extract(epoch FROM now() - state_since)::float8
FROM instances WHERE deployment_id = %(deployment_id)s ORDER BY instance_id
"""


async def deploy(call: Call[Nothing, NewDeployment]) -> Deployment:
    """Make the deployment and its instances, all or none."""
    asked, connection, actor = call.body, call.connection, call.caller.actor
    organization_id = await organization_of(connection, call.caller)
    model = await _wanted(call, organization_id)
    values = {
        "organization_id": organization_id,
        "name": asked.name
        or f"{asked.count} {asked.instance_type}" + (f" for {model.hugging_face_id}" if model else ""),
        "model_id": model.model_id if model else None,
        "provider": asked.provider,
        "zone": asked.zone,
        "instance_type": asked.instance_type,
        "count": asked.count,
        "actor": actor,
        "correlation_id": correlation_id.get(),
    }
    row = await (await connection.execute(_INSERT, values)).fetchone()
    assert row is not None
    deployment_id, created_at = row
    wanted = NewInstance(
        organization_id=organization_id,
        provider=asked.provider,
        zone=asked.zone,
        instance_type=asked.instance_type,
        model_id=model.model_id if model else None,
        deployment_id=deployment_id,
        options=asked.options,
    )
    made = [await create(connection, wanted, actor=actor) for _ in range(asked.count)]
    await log_action(
        connection,
        "deploy",
        succeeded=True,
        provider=asked.provider,
        actor=actor,
        detail={"deployment_id": str(deployment_id), "instance_ids": made},
    )
    return Deployment(
        deployment_id=deployment_id,
        organization_id=organization_id,
        name=str(values["name"]),
        model_id=model.model_id if model else None,
        model=model.hugging_face_id if model else None,
        provider=asked.provider,
        zone=asked.zone,
        instance_type=asked.instance_type,
        instance_count=asked.count,
        created_by=actor,
        correlation_id=correlation_id.get(),
        created_at=created_at,
        states={"provisioning": asked.count},
    )


async def _wanted(call: Call[Nothing, NewDeployment], organization_id: UUID) -> Model | None:
    """The model, once everything asked for is found to be offered. Raises ProblemError (422)."""
    asked = call.body
    place = {"provider": asked.provider, "zone": asked.zone, "instance_type": asked.instance_type}
    row = await (await call.connection.execute(_OFFERED, place)).fetchone()
    assert row is not None
    errors = _not_offered(asked, *row)
    model = None
    if asked.model is not None:
        model = await resolve(call.connection, asked.model, organization_id)
        if model is None or not model.active:
            errors.append(FieldError("model", f"there is no active model {asked.model}"))
        elif not model.accessible:
            errors.append(FieldError("model", f"the organisation may not use {asked.model}"))
    if errors:
        raise unprocessable(errors)
    return model


def _not_offered(
    asked: NewDeployment,
    providers: Sequence[str] | None,
    zone: bool | None,
    instance_type: bool | None,
    there: bool | None,
) -> list[FieldError]:
    """What the catalogue does not have; None is unknown, False is known and not to be had now."""
    if asked.provider not in (providers or ()):
        known = ", ".join(providers or ()) or "none"
        return [FieldError("provider", f"there is no provider {asked.provider}; there are: {known}")]
    errors = []
    if not zone:
        reason = f"{asked.provider} has no zone {asked.zone}" if zone is None else f"{asked.zone} takes no machines now"
        errors.append(FieldError("zone", reason))
    if not instance_type:
        name = asked.instance_type
        reason = f"{asked.provider} has no {name}" if instance_type is None else f"{name} cannot be had now"
        errors.append(FieldError("instance_type", reason))
    elif zone and not there:
        errors.append(FieldError("instance_type", f"{asked.instance_type} is not to be had in {asked.zone}"))
    return errors


async def deployments(call: Call[Page, Nothing]) -> Deployments:
    """The list."""
    page = call.query
    place = after(page, tuple[datetime, UUID])
    rows = await call.parts.database.rows(_LIST, _which(call.caller.only_organization, None, place, page.limit + 1))
    shown = [Deployment(**_fields(row)) for row in rows[: page.limit]]
    cursor = next_cursor(rows, page, (shown[-1].created_at, shown[-1].deployment_id) if shown else None)
    return Deployments(shown, cursor)


async def deployment(call: Call[Nothing, Nothing]) -> DeploymentProgress:
    """One, with the progress of its instances."""
    deployment_id: UUID = call.path["deployment_id"]
    database = call.parts.database
    rows = await database.rows(_LIST, _which(call.caller.only_organization, deployment_id, None, 1))
    if not rows:
        raise ProblemError(404, f"there is no deployment {deployment_id}")
    shown = _fields(rows[0])
    expected = await expected_seconds(database, str(shown["provider"]), str(shown["instance_type"]))
    subjects = await database.rows(_INSTANCES, {"deployment_id": deployment_id})
    parts = [progress(Subject(*subject), expected) for subject in subjects]
    # Of one look: between two queries an instance may move.
    shown["states"] = dict(Counter(part.state for part in parts))
    percent, remaining = together(parts)
    return DeploymentProgress(**shown, percent=percent, expected_remaining_seconds=remaining, instances=parts)


def _which(
    organization_id: UUID | None, deployment_id: UUID | None, place: tuple[datetime, UUID] | None, rows: int
) -> dict[str, object]:
    return {
        "organization_id": organization_id,
        "deployment_id": deployment_id,
        "after_time": place[0] if place else None,
        "after_id": place[1] if place else None,
        "rows": rows,
    }


def _fields(row: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(Deployment.__struct_fields__, row, strict=True))


ENDPOINTS: Final = (
    Endpoint(
        "POST",
        "/deployments",
        "Make instances",
        TAG,
        deploy,
        scope="admin",
        status=201,
        creates=True,
        location="/deployments/{deployment_id}",
    ),
    Endpoint("GET", "/deployments", "Deployments, newest first", TAG, deployments),
    Endpoint("GET", "/deployments/{deployment_id}", "One deployment and its progress", TAG, deployment),
)
