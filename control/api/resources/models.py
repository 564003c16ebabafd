"""``/models``: what can be served, and who may use it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from pydantic import Field

from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Body, ModelName, Nothing, Page, Text
from control.api.paging import Name, after, next_cursor
from control.api.problems import ProblemError
from control.database import Row

TAG: Final = "Models"
Aliases = Annotated[list[ModelName], Field(max_length=100, description="Further names")]
ContextTokens = Annotated[int, Field(ge=1, le=2**31 - 1, description="Longest context, in tokens")]


class NewModel(Body):
    """A model. One that is not public is only for organisations that were granted it."""

    hugging_face_id: ModelName
    name: Annotated[Text | None, Field(description="For people; the Hugging Face id when missing")] = None
    context_tokens: ContextTokens | None = None
    public: bool = True
    active: bool = True
    aliases: Aliases = Field(default_factory=list)


class ModelChange(Body):
    """What to change; what is missing stays."""

    name: Text | None = None
    context_tokens: ContextTokens | None = None
    public: bool | None = None
    active: bool | None = None
    aliases: Aliases | None = None


class Model(msgspec.Struct, frozen=True):
    """A model."""

    model_id: UUID
    hugging_face_id: str
    name: str
    context_tokens: int | None
    public: bool
    active: bool
    aliases: Sequence[str]
    created_at: datetime


class Models(msgspec.Struct, frozen=True):
    """Models, by Hugging Face id."""

    models: Sequence[Model]
    next_cursor: str | None


_SELECT: Final = """
SELECT m.model_id, m.hugging_face_id, m.name, m.context_tokens, m.public, m.active,
    ARRAY(SELECT alias FROM model_aliases AS a WHERE a.model_id = m.model_id ORDER BY alias), m.created_at
FROM models AS m
WHERE (%(organization_id)s::uuid IS NULL OR m.public OR EXISTS (
        SELECT FROM model_access AS a WHERE a.model_id = m.model_id AND a.organization_id = %(organization_id)s
    ))
    AND (%(model_id)s::uuid IS NULL OR m.model_id = %(model_id)s)
    AND (%(after)s::text IS NULL OR m.hugging_face_id > %(after)s)
ORDER BY m.hugging_face_id LIMIT %(rows)s
"""
_INSERT: Final = """
INSERT INTO models (hugging_face_id, name, context_tokens, public, active)
VALUES (%(hugging_face_id)s, %(name)s, %(context_tokens)s, %(public)s, %(active)s)
RETURNING model_id
"""
_UPDATE: Final = """
UPDATE models SET name = coalesce(%(name)s, name), context_tokens = coalesce(%(context_tokens)s, context_tokens),
    public = coalesce(%(public)s, public), active = coalesce(%(active)s, active)
WHERE model_id = %(model_id)s RETURNING model_id
"""
_DELETE: Final = "DELETE FROM models WHERE model_id = %(model_id)s RETURNING model_id"
_NO_ALIASES: Final = "DELETE FROM model_aliases WHERE model_id = %(model_id)s"
_ALIASES: Final = "INSERT INTO model_aliases (alias, model_id) SELECT unnest(%(aliases)s::text[]), %(model_id)s"


async def create(call: Call[Nothing, NewModel]) -> Model:
    """Make it known."""
    new = call.body
    values = {**new.model_dump(exclude={"aliases"}), "name": new.name or new.hugging_face_id}
    row = await (await call.connection.execute(_INSERT, values)).fetchone()
    assert row is not None
    await _set_aliases(call, row[0], new.aliases)
    return await _shown(call, row[0])


async def change(call: Call[Nothing, ModelChange]) -> Model:
    """Change it."""
    model_id: UUID = call.path["model_id"]
    values = {**call.body.model_dump(exclude={"aliases"}), "model_id": model_id}
    if await (await call.connection.execute(_UPDATE, values)).fetchone() is None:
        raise missing(model_id)
    if call.body.aliases is not None:
        await _set_aliases(call, model_id, call.body.aliases)
    return await _shown(call, model_id)


async def remove(call: Call[Nothing, Nothing]) -> None:
    """Forget it."""
    model_id: UUID = call.path["model_id"]
    if await (await call.connection.execute(_DELETE, {"model_id": model_id})).fetchone() is None:
        raise missing(model_id)


async def models(call: Call[Page, Nothing]) -> Models:
    """The list."""
    page = call.query
    place = after(page, tuple[Name])
    rows = await call.parts.database.rows(_SELECT, _which(call, None, place[0] if place else None, page.limit + 1))
    shown = [Model(*row) for row in rows[: page.limit]]
    return Models(shown, next_cursor(rows, page, (shown[-1].hugging_face_id,) if shown else None))


async def model(call: Call[Nothing, Nothing]) -> Model:
    """One."""
    model_id: UUID = call.path["model_id"]
    rows = await call.parts.database.rows(_SELECT, _which(call, model_id, None, 1))
    return _one(rows, model_id)


async def _shown(call: Call[Any, Any], model_id: UUID) -> Model:
    """As this transaction sees it."""
    cursor = await call.connection.execute(_SELECT, _which(call, model_id, None, 1))
    return _one(await cursor.fetchall(), model_id)


def _one(rows: Sequence[Row], model_id: UUID) -> Model:
    if not rows:
        raise missing(model_id)
    return Model(*rows[0])


async def _set_aliases(call: Call[Any, Any], model_id: UUID, aliases: Sequence[str]) -> None:
    await call.connection.execute(_NO_ALIASES, {"model_id": model_id})
    await call.connection.execute(_ALIASES, {"model_id": model_id, "aliases": list(dict.fromkeys(aliases))})


def _which(call: Call[Any, Any], model_id: UUID | None, place: str | None, rows: int) -> dict[str, Any]:
    organization_id = call.caller.only_organization
    return {"organization_id": organization_id, "model_id": model_id, "after": place, "rows": rows}


def missing(model_id: UUID) -> ProblemError:
    """404."""
    return ProblemError(404, f"there is no model {model_id}")


_TAKEN: Final = "a model with this Hugging Face id, or one of these aliases, exists already"
ENDPOINTS: Final = (
    Endpoint("GET", "/models", "Models, by name", TAG, models),
    Endpoint("GET", "/models/{model_id}", "One model", TAG, model),
    Endpoint(
        "POST",
        "/models",
        "Make a model known",
        TAG,
        create,
        act="create_model",
        scope="admin",
        operators=True,
        status=201,
        creates=True,
        conflict=_TAKEN,
        location="/models/{model_id}",
    ),
    Endpoint(
        "PATCH",
        "/models/{model_id}",
        "Change a model",
        TAG,
        change,
        act="change_model",
        scope="admin",
        operators=True,
        conflict=_TAKEN,
    ),
    Endpoint(
        "DELETE",
        "/models/{model_id}",
        "Forget a model",
        TAG,
        remove,
        act="delete_model",
        scope="admin",
        operators=True,
        conflict="the model is in use by offerings, deployments or instances: set active to false instead",
    ),
)
