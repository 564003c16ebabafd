"""``/organizations``: whose keys, users and offerings there are. The operators' own is named ``default``."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from control.access.organizations import organization_of
from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Body, Nothing, Page, Slug, Text
from control.api.paging import Name, after, next_cursor
from control.api.problems import ProblemError

TAG: Final = "Organisations"


class NewOrganization(Body):
    """An organisation; its slug begins the names of its offerings."""

    slug: Slug
    name: Text


class Organization(msgspec.Struct, frozen=True):
    """An organisation."""

    organization_id: UUID
    slug: str
    name: str
    created_at: datetime


class Organizations(msgspec.Struct, frozen=True):
    """Organisations, by slug."""

    organizations: Sequence[Organization]
    next_cursor: str | None


_SELECT: Final = """
SELECT organization_id, slug, name, created_at FROM organizations
WHERE (%(organization_id)s::uuid IS NULL OR organization_id = %(organization_id)s)
    AND (%(after)s::text IS NULL OR slug > %(after)s)
ORDER BY slug LIMIT %(rows)s
"""
_INSERT: Final = """
INSERT INTO organizations (slug, name) VALUES (%(slug)s, %(name)s)
RETURNING organization_id, slug, name, created_at
"""
_DELETE: Final = "DELETE FROM organizations WHERE organization_id = %(organization_id)s RETURNING organization_id"


async def create(call: Call[Nothing, NewOrganization]) -> Organization:
    """Make it."""
    # The operators' must not be taken by anybody else before it is first needed.
    await organization_of(call.connection, call.caller)
    row = await (await call.connection.execute(_INSERT, call.body.model_dump())).fetchone()
    assert row is not None
    return Organization(*row)


async def remove(call: Call[Nothing, Nothing]) -> None:
    """Remove it."""
    organization_id: UUID = call.path["organization_id"]
    if await (await call.connection.execute(_DELETE, {"organization_id": organization_id})).fetchone() is None:
        raise missing(organization_id)


async def organizations(call: Call[Page, Nothing]) -> Organizations:
    """The list; for others than operators, their own."""
    page = call.query
    place = after(page, tuple[Name])
    rows = await call.parts.database.rows(
        _SELECT,
        {
            "organization_id": call.caller.only_organization,
            "after": place[0] if place else None,
            "rows": page.limit + 1,
        },
    )
    shown = [Organization(*row) for row in rows[: page.limit]]
    return Organizations(shown, next_cursor(rows, page, (shown[-1].slug,) if shown else None))


async def organization(call: Call[Nothing, Nothing]) -> Organization:
    """One."""
    organization_id: UUID = call.path["organization_id"]
    only = call.caller.only_organization
    values = {"organization_id": organization_id, "after": None, "rows": 1}
    rows = await call.parts.database.rows(_SELECT, values) if only in (None, organization_id) else []
    if not rows:
        raise missing(organization_id)
    return Organization(*rows[0])


def missing(organization_id: UUID) -> ProblemError:
    """404."""
    return ProblemError(404, f"there is no organisation {organization_id}")


ENDPOINTS: Final = (
    Endpoint("GET", "/organizations", "Organisations, by slug", TAG, organizations),
    Endpoint("GET", "/organizations/{organization_id}", "One organisation", TAG, organization),
    Endpoint(
        "POST",
        "/organizations",
        "Make an organisation",
        TAG,
        create,
        act="create_organization",
        scope="admin",
        operators=True,
        status=201,
        creates=True,
        conflict="an organisation with this slug exists already",
        location="/organizations/{organization_id}",
    ),
    Endpoint(
        "DELETE",
        "/organizations/{organization_id}",
        "Remove an organisation",
        TAG,
        remove,
        act="delete_organization",
        scope="admin",
        operators=True,
        conflict="the organisation still has keys, users, offerings, deployments or instances",
    ),
)
