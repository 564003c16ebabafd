"""Kinds of values that several groups have."""

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, SecretStr

PositiveSeconds = Annotated[float, Field(gt=0, le=86_400 * 3650)]
Port = Annotated[int, Field(ge=0, le=65_535)]
EngineKind = Literal["vllm", "sglang", "tgi", "llamacpp"]

_BEARER: Final = re.compile(r"[!-~]{1,4096}")


def _sendable(key: SecretStr) -> SecretStr:
    """It goes into a header as it is."""
    if _BEARER.fullmatch(key.get_secret_value()) is None:
        raise ValueError("a key is made of visible ASCII characters, without spaces")
    return key


BearerKey = Annotated[SecretStr, AfterValidator(_sendable)]


def split(value: object) -> object:
    """A list in the environment: its parts, without the spaces around them."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
