"""An endpoint as data: its route, who may use it, and, by its handler's types, what it takes and answers.

Routes and the OpenAPI document are both made of these.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, get_args, get_type_hints

from pydantic import BaseModel

from control.access.principal import Scope
from control.api.call import Call
from control.api.fields import Nothing

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
Handler = Callable[[Call[Any, Any]], Awaitable[Any]]
JSON: Final = "application/json"


@dataclass(frozen=True)
class Endpoint:
    """One method of one path.

    A handler is a coroutine function of a ``Call[Query, Body]``; it returns an answer as a msgspec structure, None for
    204, or a response of its own.
    """

    method: Method
    path: str
    summary: str
    tag: str
    handler: Handler | None
    """None where another part routes it, and it is only described here."""
    scope: Scope | Literal["any"] | None = "read"
    """any is for every key and user, None is open to all."""
    operators: bool = False
    """Whether it concerns all organisations, so that only the operators' may use it."""
    status: int = 200
    answer: Any = None
    """Type of the answer where the handler makes the response itself."""
    contents: tuple[str, ...] = (JSON,)
    other_answers: Mapping[int, Any] = field(default_factory=dict)
    """Types of further answers that are no problems."""
    refusals: Mapping[int, str] = field(default_factory=dict)
    """Statuses beyond those that follow from the rest, and when they come."""
    creates: bool = False
    """Whether it makes something anew with every request, so that Idempotency-Key matters."""
    shown_once: str | None = None
    """Field of the answer that is null when the answer is given again."""
    conflict: str | None = None
    """What it means when the database refuses for uniqueness or references."""
    location: str | None = None
    """Path of what was created, with names of the answer's fields."""
    act: str | None = None
    """What the action log calls it, where the handler does not write there itself."""
    in_transaction: bool | None = None
    """Whether the handler has a transaction; unless given, everything but GET has."""

    @cached_property
    def _types(self) -> dict[str, Any]:
        return get_type_hints(self.handler) if self.handler is not None else {}

    @cached_property
    def _asked(self) -> tuple[type[BaseModel], type[BaseModel]]:
        call = next(iter(self._types.values()), Call[Nothing, Nothing])
        query, body = get_args(call)
        return query, body

    @property
    def query(self) -> type[BaseModel]:
        """Model of the query parameters."""
        return self._asked[0]

    @property
    def body(self) -> type[BaseModel]:
        """Model of the body."""
        return self._asked[1]

    @property
    def has_body(self) -> bool:
        """Whether it takes a body."""
        return self.body is not Nothing

    @cached_property
    def answer_type(self) -> Any:
        """Type of a good answer; None for an empty one."""
        returned = self.answer if self.answer is not None else self._types["return"]
        return None if returned is type(None) else returned

    @property
    def needs_transaction(self) -> bool:
        """Whether its handler works in a transaction."""
        return self.method != "GET" if self.in_transaction is None else self.in_transaction
