"""``/offerings``: models under an organisation's own names, ``organisation/code``."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from control.access.organizations import organization_of
from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Body, Code, ModelName, Nothing, Page
from control.api.models import resolve
from control.api.paging import Name, after, next_cursor
from control.api.problems import FieldError, ProblemError, unprocessable

TAG: Final = "Models"


class NewOffering(Body):
    """A name for a model."""

    code: Code
    model: ModelName
    organization_id: UUID | None = None
    """Whose; the caller's own when missing."""


class OfferingChange(Body):
    """What to change."""

    active: bool


class Offering(msgspec.Struct, frozen=True):
    """A model under an organisation's name; ``name`` is what requests say."""

    offering_id: UUID
    organization_id: UUID
    name: str
    code: str
    model_id: UUID
    model: str
    active: bool
    created_at: datetime


class Offerings(msgspec.Struct, frozen=True):
    """Offerings, by name."""

    offerings: Sequence[Offering]
    next_cursor: str | None


_SELECT: Final = """
SELECT f.offering_id, f.organization_id, o.slug || '/' || f.code AS name, f.code, f.model_id, m.hugging_face_id,
    f.active, f.created_at
FROM offerings AS f JOIN organizations AS o USING (organization_id) JOIN models AS m USING (model_id)
WHERE (%(organization_id)s::uuid IS NULL OR f.organization_id = %(organization_id)s)
    AND (%(offering_id)s::uuid IS NULL OR f.offering_id = %(offering_id)s)
    AND (%(after)s::text IS NULL OR o.slug || '/' || f.code > %(after)s)
ORDER BY name LIMIT %(rows)s
"""
_INSERT: Final = """
INSERT INTO offerings (organization_id, code, model_id) VALUES (%(organization_id)s, %(code)s, %(model_id)s)
RETURNING offering_id
"""
_UPDATE: Final = """
UPDATE offerings SET active = %(active)s
WHERE offering_id = %(offering_id)s
    AND (%(organization_id)s::uuid IS NULL OR organization_id = %(organization_id)s)
"""
_DELETE: Final = """
DELETE FROM offerings
WHERE offering_id = %(offering_id)s
    AND (%(organization_id)s::uuid IS NULL OR organization_id = %(organization_id)s)
"""


async def create(call: Call[Nothing, NewOffering]) -> Offering:
    """Make it."""
    new = call.body
    own = await organization_of(call.connection, call.caller)
    organization_id = new.organization_id or own
    if not call.caller.is_operator and organization_id != own:
        raise ProblemError(403, "offerings of other organisations are for the operators")
    model = await resolve(call.connection, new.model, organization_id)
    if model is None or not model.accessible:
        raise unprocessable([FieldError("model", f"the organisation has no model {new.model}")])
    values = {"organization_id": organization_id, "code": new.code, "model_id": model.model_id}
    row = await (await call.connection.execute(_INSERT, values)).fetchone()
    assert row is not None
    return await _shown(call, row[0])


async def change(call: Call[Nothing, OfferingChange]) -> Offering:
    """Switch it on or off."""
    await call.connection.execute(_UPDATE, {**_mine(call), "active": call.body.active})
    return await _shown(call, call.path["offering_id"])


async def remove(call: Call[Nothing, Nothing]) -> None:
    """Remove it."""
    if (await call.connection.execute(_DELETE, _mine(call))).rowcount == 0:
        raise _missing(call.path["offering_id"])


async def offerings(call: Call[Page, Nothing]) -> Offerings:
    """The list."""
    page = call.query
    place = after(page, tuple[Name])
    rows = await call.parts.database.rows(
        _SELECT,
        {
            "organization_id": call.caller.only_organization,
            "offering_id": None,
            "after": place[0] if place else None,
            "rows": page.limit + 1,
        },
    )
    shown = [Offering(*row) for row in rows[: page.limit]]
    return Offerings(shown, next_cursor(rows, page, (shown[-1].name,) if shown else None))


def _mine(call: Call[Any, Any]) -> dict[str, Any]:
    return {"offering_id": call.path["offering_id"], "organization_id": call.caller.only_organization}


async def _shown(call: Call[Any, Any], offering_id: UUID) -> Offering:
    """As this transaction sees it. Raises ProblemError (404)."""
    values = {"organization_id": call.caller.only_organization, "offering_id": offering_id, "after": None, "rows": 1}
    row = await (await call.connection.execute(_SELECT, values)).fetchone()
    if row is None:
        raise _missing(offering_id)
    return Offering(*row)


def _missing(offering_id: UUID) -> ProblemError:
    return ProblemError(404, f"there is no offering {offering_id}")


ENDPOINTS: Final = (
    Endpoint("GET", "/offerings", "Offerings, by name", TAG, offerings),
    Endpoint(
        "POST",
        "/offerings",
        "Offer a model under a name of one's own",
        TAG,
        create,
        act="create_offering",
        scope="admin",
        status=201,
        creates=True,
        conflict="the organisation has an offering of this code already, or does not exist",
    ),
    Endpoint(
        "PATCH",
        "/offerings/{offering_id}",
        "Switch an offering on or off",
        TAG,
        change,
        act="change_offering",
        scope="admin",
    ),
    Endpoint(
        "DELETE", "/offerings/{offering_id}", "Remove an offering", TAG, remove, act="delete_offering", scope="admin"
    ),
)
