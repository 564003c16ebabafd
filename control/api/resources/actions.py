"""``/actions``: every critical act of control, calls of providers included."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from pydantic import Field

from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Code, Identity, Nothing, Page, YesOrNo
from control.api.paging import Number, after, next_cursor
from control.database import Database


class Action(msgspec.Struct, frozen=True):
    """One act."""

    action_id: int
    at: datetime
    action: str
    succeeded: bool
    instance_id: str | None
    provider: str | None
    actor: str
    duration_seconds: float | None
    detail: dict[str, Any]
    correlation_id: str | None


class Actions(msgspec.Struct, frozen=True):
    """Acts, newest first."""

    actions: Sequence[Action]
    next_cursor: str | None


class ActionsQuery(Page):
    """Which acts."""

    instance: Annotated[Identity | None, Field(description="Only for this instance")] = None
    provider: Annotated[Code | None, Field(description="Only at this provider")] = None
    action: Annotated[Code | None, Field(description="Only of this kind")] = None
    succeeded: Annotated[YesOrNo | None, Field(description="Only those that succeeded, or that failed")] = None


_ACTIONS: Final = """
SELECT action_id, at, action, succeeded, instance_id, provider, actor, duration_seconds, detail, correlation_id
FROM action_log
WHERE (%(after)s::bigint IS NULL OR action_id < %(after)s)
    AND (%(instance_id)s::text IS NULL OR instance_id = %(instance_id)s)
    AND (%(provider)s::text IS NULL OR provider = %(provider)s)
    AND (%(action)s::text IS NULL OR action = %(action)s)
    AND (%(succeeded)s::boolean IS NULL OR succeeded = %(succeeded)s)
ORDER BY action_id DESC LIMIT %(rows)s
"""


async def page_of_actions(
    database: Database,
    page: Page,
    *,
    instance_id: str | None = None,
    provider: str | None = None,
    action: str | None = None,
    succeeded: bool | None = None,
) -> Actions:
    """A part of the log."""
    place = after(page, tuple[Number])
    rows = await database.rows(
        _ACTIONS,
        {
            "after": place[0] if place else None,
            "instance_id": instance_id,
            "provider": provider,
            "action": action,
            "succeeded": succeeded,
            "rows": page.limit + 1,
        },
    )
    shown = [Action(*row) for row in rows[: page.limit]]
    return Actions(shown, next_cursor(rows, page, (shown[-1].action_id,) if shown else None))


async def actions(call: Call[ActionsQuery, Nothing]) -> Actions:
    """The log."""
    query = call.query
    return await page_of_actions(
        call.parts.database,
        query,
        instance_id=query.instance,
        provider=query.provider,
        action=query.action,
        succeeded=None if query.succeeded is None else query.succeeded == "true",
    )


ENDPOINTS: Final = (Endpoint("GET", "/actions", "The action log, newest first", "Fleet", actions, operators=True),)
