"""Kinds of values that several groups have."""

from typing import Annotated

from pydantic import Field

PositiveSeconds = Annotated[float, Field(gt=0, le=86_400 * 3650)]
Port = Annotated[int, Field(ge=0, le=65_535)]


def split(value: object) -> object:
    """A list in the environment: its parts, without the spaces around them."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
