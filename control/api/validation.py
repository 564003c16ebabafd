"""Reading requests: what is wrong with each field is collected, so that one answer names all of it."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, get_origin
from uuid import UUID

from aiohttp import web
from pydantic import BaseModel, TypeAdapter, ValidationError

from control.api.fields import Code, Identity
from control.api.problems import FieldError, ProblemError, unprocessable

Model = TypeVar("Model", bound=BaseModel)

# Types of the variable parts of paths, by name.
PATH_TYPES: Final[Mapping[str, TypeAdapter[Any]]] = {
    **{name: TypeAdapter(Identity) for name in ("worker_id", "instance_id")},
    **{
        name: TypeAdapter(UUID)
        for name in ("deployment_id", "model_id", "organization_id", "offering_id", "key_id", "user_id")
    },
    **{name: TypeAdapter(Code) for name in ("provider", "file")},
}
JSON: Final = "application/json"
ERRORS_MAXIMUM: Final = 100
# Where pydantic's own words tell a reader of Python, and not who wrote the request.
_OURS: Final[Mapping[str, str]] = {
    "extra_forbidden": "unknown field",
    "timezone_aware": "needs a time zone, e.g. 2026-11-21T07:25:00Z",
}


def path_values(request: web.Request) -> dict[str, Any]:
    """The variable parts of the path. Raises ProblemError (422)."""
    values: dict[str, Any] = {}
    errors: list[FieldError] = []
    for name, text in request.match_info.items():
        try:
            values[name] = PATH_TYPES[name].validate_python(text)
        except ValidationError as error:
            errors.append(FieldError(name, _detail(error.errors()[0])))
    if errors:
        raise unprocessable(errors)
    return values


def query_values(request: web.Request, model: type[Model]) -> Model:
    """The query parameters. Raises ProblemError (422), naming unknown parameters first."""
    fields = model.model_fields
    errors = [
        FieldError(_printable(name), f"unknown parameter; known: {', '.join(fields) or 'none'}")
        for name in dict.fromkeys(request.query)
        if name not in fields
    ]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        given = request.query.getall(name, [])
        if get_origin(field.annotation) is list or name in getattr(model, "repeatable", ()):
            values |= {name: given} if given else {}
        elif len(given) > 1:
            errors.append(FieldError(name, "given more than once"))
        elif given:
            values[name] = given[0]
    return _checked(lambda: model.model_validate(values), errors, "query", parts=1)


async def body_values(request: web.Request, model: type[Model]) -> tuple[Model, bytes]:
    """The JSON body, and its bytes. Raises ProblemError (413, 415, 422)."""
    if request.content_type != JSON or request.headers.get("Content-Encoding", "identity") != "identity":
        raise ProblemError(415, f"the body must be JSON and not compressed: send Content-Type: {JSON}")
    data = await request.read()
    return _checked(lambda: model.model_validate_json(data), [], "body"), data


def _checked(validate: Callable[[], Model], errors: list[FieldError], whole: str, parts: int | None = None) -> Model:
    """``parts`` is how much of a field's path names it; each is named once."""
    try:
        found = validate()
    except ValidationError as error:
        named: dict[str, FieldError] = {}
        for one in error.errors(include_url=False)[:ERRORS_MAXIMUM]:
            name = ".".join(_printable(str(part)) for part in one["loc"][:parts]) or whole
            named.setdefault(name, FieldError(name, _detail(one)))
        errors = [*errors, *named.values()]
    if errors:
        raise unprocessable(errors)
    return found


def _detail(error: Any) -> str:
    """Pydantic's message, as one of ours begins: without a capital, and without its name for our own errors."""
    message = _OURS.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")
    return _printable(message[:1].lower() + message[1:])


def _printable(name: str) -> str:
    return name[:200].encode("unicode_escape").decode()
