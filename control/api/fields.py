"""Types of the fields of requests: what they accept, and how the OpenAPI document describes it."""

import math
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from control.access.principal import Scope

DIGITS_MAXIMUM: Final = 10
OPTIONS_DEPTH: Final = 8
OPTIONS_VALUES: Final = 1_000


class Body(BaseModel):
    """A JSON object; unknown fields and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Query(BaseModel):
    """Query parameters, which are text; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Nothing(Query):
    """No parameters, or no body."""


def _digits(value: Any) -> Any:
    """Text of a whole number: pydantic would also take signs, underscores, and other scripts' digits."""
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit()) or len(value) > DIGITS_MAXIMUM:
            raise ValueError("must be a whole number")
        return int(value)
    return value


def _storable(value: Any, depth: int = 0) -> int:
    """How many values there are in it; raises ValueError for what JSON in the database cannot hold."""
    if depth > OPTIONS_DEPTH:
        raise ValueError(f"is nested more than {OPTIONS_DEPTH} deep")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("must not contain NUL")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must not contain numbers that are not finite")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("must not contain whole numbers beyond 64 bits")
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    names = list(value) if isinstance(value, dict) else []
    count = 1 + sum(_storable(part, depth + 1) for part in [*parts, *names])
    if count > OPTIONS_VALUES:
        raise ValueError(f"has more than {OPTIONS_VALUES} values")
    return count


def _checked(value: dict[str, Any]) -> dict[str, Any]:
    _storable(value)
    return value


# Behind the field's limits: in front of them it would hide them from the document.
WHOLE_NUMBER: Final = BeforeValidator(_digits)
# As heartbeats have it.
Identity = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]
Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]+$")]
Slug = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
Code = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
# What requests name a model by: letters, digits and the few signs of Hugging Face ids and offerings.
ModelName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$")]
Email = Annotated[str, Field(min_length=3, max_length=200, pattern=r"^[^@\s\x00]+@[^@\s\x00]+$")]
Password = Annotated[str, Field(min_length=12, max_length=200)]
Scopes = Annotated[list[Scope], Field(min_length=1, max_length=3)]
Options = Annotated[dict[str, Any], AfterValidator(_checked)]
YesOrNo = Literal["true", "false"]


class Page(Query):
    """Which part of a list: ``cursor`` is the ``next_cursor`` of the part before."""

    limit: Annotated[int, Field(ge=1, le=1_000, description="Most elements of the answer"), WHOLE_NUMBER] = 100
    cursor: Annotated[
        Annotated[str, Field(max_length=1_000, pattern=r"^[A-Za-z0-9_-]+$")] | None,
        Field(description="next_cursor of the answer before; the first part when missing"),
    ] = None
