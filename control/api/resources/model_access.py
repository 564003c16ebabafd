"""``/models/{model_id}/access``: which organisations may use a model that is not public."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Nothing, Page
from control.api.paging import after, next_cursor
from control.api.resources.models import TAG


class Grant(msgspec.Struct, frozen=True):
    """An organisation that may use the model."""

    organization_id: UUID
    slug: str
    granted_at: datetime


class Grants(msgspec.Struct, frozen=True):
    """Organisations that may use the model, whether or not it is public."""

    grants: Sequence[Grant]
    next_cursor: str | None


_SELECT: Final = """
SELECT organization_id, slug, granted_at FROM model_access JOIN organizations USING (organization_id)
WHERE model_id = %(model_id)s AND (%(after)s::uuid IS NULL OR organization_id > %(after)s)
ORDER BY organization_id LIMIT %(rows)s
"""
_GRANT: Final = """
INSERT INTO model_access (model_id, organization_id) VALUES (%(model_id)s, %(organization_id)s) ON CONFLICT DO NOTHING
"""
_WITHDRAW: Final = "DELETE FROM model_access WHERE model_id = %(model_id)s AND organization_id = %(organization_id)s"
_UNKNOWN: Final = "there is no such model, or no such organisation"


async def grants(call: Call[Page, Nothing]) -> Grants:
    """The list."""
    page = call.query
    place = after(page, tuple[UUID])
    rows = await call.parts.database.rows(
        _SELECT,
        {"model_id": call.path["model_id"], "after": place[0] if place else None, "rows": page.limit + 1},
    )
    shown = [Grant(*row) for row in rows[: page.limit]]
    return Grants(shown, next_cursor(rows, page, (shown[-1].organization_id,) if shown else None))


async def grant(call: Call[Nothing, Nothing]) -> None:
    """Let an organisation use it; nothing happens when it may already."""
    await call.connection.execute(_GRANT, dict(call.path))


async def withdraw(call: Call[Nothing, Nothing]) -> None:
    """Do not let it any more; nothing happens when it may not."""
    await call.connection.execute(_WITHDRAW, dict(call.path))


_ONE: Final = "/models/{model_id}/access/{organization_id}"
ENDPOINTS: Final = (
    Endpoint(
        "GET", "/models/{model_id}/access", "Organisations that were granted a model", TAG, grants, operators=True
    ),
    Endpoint(
        "PUT",
        _ONE,
        "Let an organisation use a model",
        TAG,
        grant,
        act="grant_model",
        scope="admin",
        operators=True,
        conflict=_UNKNOWN,
    ),
    Endpoint(
        "DELETE",
        _ONE,
        "Withdraw a model from an organisation",
        TAG,
        withdraw,
        act="withdraw_model",
        scope="admin",
        operators=True,
    ),
)
