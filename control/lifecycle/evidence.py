"""Anything as text or JSON that PostgreSQL stores: evidence is what others said, and others say NaN, NUL and halves of
characters."""

import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, Final

import msgspec
from psycopg.types.json import Jsonb

# Of up to four bytes each, three of them still fit into an entry of an index, which has 2,704 bytes.
LINE_CHARACTERS: Final = 200


def stored(value: Mapping[str, Any]) -> Jsonb:
    """A parameter for a jsonb column. Not a finite number becomes null; what JSON does not know becomes text."""
    return Jsonb(plain(value))


def text(said: str) -> str:
    """What of a text UTF-8 and PostgreSQL can hold; the rest is shown as having been there."""
    return said.replace("\x00", "\ufffd").encode(errors="replace").decode()


def line(said: str) -> str:
    """The same of a name or an id, of which an index holds only so much."""
    return text(said)[:LINE_CHARACTERS]


def plain(value: Any) -> Any:
    """The value in JSON's own types."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return text(value)
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    if isinstance(value, msgspec.Struct):
        return plain(msgspec.structs.asdict(value))
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    return plain(str(value))
