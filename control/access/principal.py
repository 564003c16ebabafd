"""Who is asking, and what they may do."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, get_args
from uuid import UUID

Scope = Literal["inference", "read", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
# The organisation of those who run the fleet; made when it is first needed.
OPERATORS: Final = "default"
ADMIN_ACTOR: Final = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """A key or a user. ``organization_id`` is None for the admin key, which belongs to the operators."""

    actor: str
    """How it is named in histories and logs: admin, key:<prefix> or user:<email>."""
    identity: str
    """Unlike the actor never that of another, and never reused."""
    scopes: frozenset[Scope]
    organization_id: UUID | None
    is_operator: bool
    """Whether it may see and do what concerns all organisations."""
    expires_at: datetime | None = None
    session_id: UUID | None = None
    """Of a user who logged in."""

    def may(self, scope: Scope) -> bool:
        """Whether it has a scope; admin includes read."""
        return scope in self.scopes or (scope == "read" and "admin" in self.scopes)

    def is_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and datetime.now(UTC) >= self.expires_at

    @property
    def only_organization(self) -> UUID | None:
        """The organisation that it is confined to; None for operators."""
        return None if self.is_operator else self.organization_id


ADMIN: Final = Principal(
    actor=ADMIN_ACTOR,
    identity=ADMIN_ACTOR,
    scopes=frozenset({"admin"}),
    organization_id=None,
    is_operator=True,
)


class NotAdmittedError(Exception):
    """Nobody we know, or not any more; the message says why, for people, without secrets."""
