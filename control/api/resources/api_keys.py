"""``/api-keys``: shown once, stored as digests, revoked at once."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from pydantic import AwareDatetime, Field

from control.access import keys
from control.access.organizations import organization_of
from control.access.principal import Scope
from control.actions import log_action
from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Body, Nothing, Page, Scopes, Text
from control.api.paging import after, next_cursor
from control.api.problems import FieldError, ProblemError, unprocessable

TAG: Final = "Access"
Limit = Annotated[int, Field(ge=1, le=2**31 - 1)]
LargeLimit = Annotated[int, Field(ge=1, le=2**53)]


class NewKey(Body):
    """A key. No model_ids means every model the organisation may use; no limit means none."""

    name: Text
    scopes: Scopes
    organization_id: UUID | None = None
    model_ids: Annotated[list[UUID] | None, Field(min_length=1, max_length=1_000)] = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: LargeLimit | None = None
    tokens_per_month: LargeLimit | None = None
    expires_at: AwareDatetime | None = None


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret: ``prefix`` is how it begins."""

    key_id: UUID
    organization_id: UUID
    name: str
    prefix: str
    scopes: Sequence[Scope]
    model_ids: Sequence[UUID] | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    tokens_per_month: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class MadeKey(Key, frozen=True, kw_only=True):
    """A key that was just made. ``key`` is shown this once, and null when the answer is given again."""

    key: str | None


class Keys(msgspec.Struct, frozen=True):
    """Keys, newest first, the revoked ones too."""

    api_keys: Sequence[Key]
    next_cursor: str | None


_SELECT: Final = """
SELECT key_id, organization_id, name, prefix, scopes, model_ids, requests_per_minute, tokens_per_minute,
    tokens_per_month, created_at, expires_at, revoked_at
FROM api_keys
WHERE (%(organization_id)s::uuid IS NULL OR organization_id = %(organization_id)s)
    AND (%(after_time)s::timestamptz IS NULL OR (created_at, key_id) < (%(after_time)s, %(after_id)s::uuid))
ORDER BY created_at DESC, key_id DESC LIMIT %(rows)s
"""
_INSERT: Final = """
INSERT INTO api_keys (
    organization_id, name, prefix, digest, scopes, model_ids, requests_per_minute, tokens_per_minute,
    tokens_per_month, expires_at
) VALUES (
    %(organization_id)s, %(name)s, %(prefix)s, %(digest)s, %(scopes)s, %(model_ids)s, %(requests_per_minute)s,
    %(tokens_per_minute)s, %(tokens_per_month)s, %(expires_at)s
) RETURNING key_id, organization_id, name, prefix, scopes, model_ids, requests_per_minute, tokens_per_minute,
    tokens_per_month, created_at, expires_at, revoked_at
"""
_REVOKE: Final = """
UPDATE api_keys SET revoked_at = coalesce(revoked_at, now())
WHERE key_id = %(key_id)s AND (%(organization_id)s::uuid IS NULL OR organization_id = %(organization_id)s)
RETURNING prefix
"""
_UNKNOWN_MODELS: Final = """
SELECT named FROM unnest(%(model_ids)s::uuid[]) AS named WHERE NOT EXISTS (SELECT FROM models WHERE model_id = named)
"""


async def create(call: Call[Nothing, NewKey]) -> MadeKey:
    """Make it."""
    new = call.body
    own = await organization_of(call.connection, call.caller)
    organization_id = new.organization_id or own
    if not call.caller.is_operator and organization_id != own:
        raise ProblemError(403, "keys of other organisations are for the operators")
    await _check(call)
    made = keys.make()
    values = {
        **new.model_dump(),
        "scopes": list(dict.fromkeys(new.scopes)),
        "organization_id": organization_id,
        "prefix": made.prefix,
        "digest": made.digest,
    }
    row = await (await call.connection.execute(_INSERT, values)).fetchone()
    assert row is not None
    detail = {"prefix": made.prefix, "scopes": values["scopes"], "organization_id": str(organization_id)}
    await log_action(call.connection, "create_key", succeeded=True, actor=call.caller.actor, detail=detail)
    return MadeKey(**_named(row), key=made.text)


async def revoke(call: Call[Nothing, Nothing]) -> None:
    """End it; nothing happens when it is revoked already."""
    values = {"key_id": call.path["key_id"], "organization_id": call.caller.only_organization}
    row = await (await call.connection.execute(_REVOKE, values)).fetchone()
    if row is None:
        raise ProblemError(404, f"there is no key {call.path['key_id']}")
    await log_action(call.connection, "revoke_key", succeeded=True, actor=call.caller.actor, detail={"prefix": row[0]})


async def api_keys(call: Call[Page, Nothing]) -> Keys:
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
    shown = [Key(**_named(row)) for row in rows[: page.limit]]
    return Keys(shown, next_cursor(rows, page, (shown[-1].created_at, shown[-1].key_id) if shown else None))


async def _check(call: Call[Nothing, NewKey]) -> None:
    """Raises ProblemError (422)."""
    errors = []
    new = call.body
    if new.expires_at is not None and not datetime.now(UTC) < new.expires_at:
        errors.append(FieldError("expires_at", "must be in the future"))
    if new.model_ids is not None:
        cursor = await call.connection.execute(_UNKNOWN_MODELS, {"model_ids": new.model_ids})
        errors += [FieldError("model_ids", f"there is no model {row[0]}") for row in await cursor.fetchall()]
    if errors:
        raise unprocessable(errors)


def _named(row: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(Key.__struct_fields__, row, strict=True))


ENDPOINTS: Final = (
    Endpoint("GET", "/api-keys", "Keys, newest first", TAG, api_keys, scope="admin"),
    Endpoint(
        "POST",
        "/api-keys",
        "Make a key",
        TAG,
        create,
        scope="admin",
        status=201,
        creates=True,
        shown_once="key",
        conflict="there is no such organisation",
    ),
    Endpoint("DELETE", "/api-keys/{key_id}", "Revoke a key, at once", TAG, revoke, scope="admin"),
)
