"""``/users``: people who log in with a password."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from control.access import passwords
from control.access.organizations import organization_of
from control.access.principal import Scope
from control.actions import log_action
from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Body, Email, Nothing, Page, Password, Scopes
from control.api.paging import after, next_cursor
from control.api.problems import ProblemError

TAG: Final = "Access"


class NewUser(Body):
    """Somebody who may log in."""

    email: Email
    password: Password
    scopes: Scopes
    organization_id: UUID | None = None


class User(msgspec.Struct, frozen=True):
    """Somebody who may log in, unless disabled."""

    user_id: UUID
    organization_id: UUID
    email: str
    scopes: Sequence[Scope]
    created_at: datetime
    disabled_at: datetime | None


class Users(msgspec.Struct, frozen=True):
    """Users, newest first."""

    users: Sequence[User]
    next_cursor: str | None


_SELECT: Final = """
SELECT user_id, organization_id, email, scopes, created_at, disabled_at FROM users
WHERE (%(organization_id)s::uuid IS NULL OR organization_id = %(organization_id)s)
    AND (%(after_time)s::timestamptz IS NULL OR (created_at, user_id) < (%(after_time)s, %(after_id)s::uuid))
ORDER BY created_at DESC, user_id DESC LIMIT %(rows)s
"""
_INSERT: Final = """
INSERT INTO users (organization_id, email, password_digest, scopes)
VALUES (%(organization_id)s, %(email)s, %(password_digest)s, %(scopes)s)
RETURNING user_id, organization_id, email, scopes, created_at, disabled_at
"""
_DISABLE: Final = """
UPDATE users SET disabled_at = coalesce(disabled_at, now())
WHERE user_id = %(user_id)s AND (%(organization_id)s::uuid IS NULL OR organization_id = %(organization_id)s)
RETURNING email
"""


async def create(call: Call[Nothing, NewUser]) -> User:
    """Make the user."""
    new = call.body
    own = await organization_of(call.connection, call.caller)
    organization_id = new.organization_id or own
    if not call.caller.is_operator and organization_id != own:
        raise ProblemError(403, "users of other organisations are for the operators")
    values = {
        "organization_id": organization_id,
        "email": new.email,
        "password_digest": await passwords.stored(new.password),
        "scopes": list(dict.fromkeys(new.scopes)),
    }
    row = await (await call.connection.execute(_INSERT, values)).fetchone()
    assert row is not None
    detail = {"email": new.email, "scopes": values["scopes"], "organization_id": str(organization_id)}
    await log_action(call.connection, "create_user", succeeded=True, actor=call.caller.actor, detail=detail)
    return User(*row)


async def disable(call: Call[Nothing, Nothing]) -> None:
    """Let the user in no more; sessions end with it."""
    values = {"user_id": call.path["user_id"], "organization_id": call.caller.only_organization}
    row = await (await call.connection.execute(_DISABLE, values)).fetchone()
    if row is None:
        raise ProblemError(404, f"there is no user {call.path['user_id']}")
    await log_action(call.connection, "disable_user", succeeded=True, actor=call.caller.actor, detail={"email": row[0]})


async def users(call: Call[Page, Nothing]) -> Users:
    """The list."""
    page = call.query
    place = after(page, tuple[datetime, UUID])
    rows = await call.parts.database.rows(
        _SELECT,
        {
            "organization_id": call.caller.only_organization,
            "after_time": place[0] if place else None,
            "after_id": place[1] if place else None,
            "rows": page.limit + 1,
        },
    )
    shown = [User(*row) for row in rows[: page.limit]]
    return Users(shown, next_cursor(rows, page, (shown[-1].created_at, shown[-1].user_id) if shown else None))


ENDPOINTS: Final = (
    Endpoint("GET", "/users", "Users, newest first", TAG, users, scope="admin"),
    Endpoint(
        "POST",
        "/users",
        "Make a user",
        TAG,
        create,
        scope="admin",
        status=201,
        creates=True,
        conflict="there is a user of this email already, or no such organisation",
    ),
    Endpoint("DELETE", "/users/{user_id}", "Disable a user, at once", TAG, disable, scope="admin"),
)
