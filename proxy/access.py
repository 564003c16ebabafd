"""Who may use what, as one immutable snapshot: keys by their digests, models by all their names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

SCOPE = "inference"


@dataclass(frozen=True, slots=True)
class Key:
    """An API key. ``model_ids`` None is every model of the organisation; a limit None is none."""

    key_id: UUID
    prefix: str
    digest: bytes
    organization_id: UUID
    organization: str
    scopes: frozenset[str]
    model_ids: frozenset[UUID] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_month: int | None = None
    expires_unix: float | None = None
    key_text: str = ""
    """The ids as records have them."""
    organization_text: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """A model. ``names`` are those that an engine may serve it under, the usual one first."""

    model_id: UUID
    hugging_face_id: str
    names: tuple[str, ...]
    public: bool
    active: bool
    created_unix: int
    organization_ids: frozenset[UUID] = frozenset()
    """Organisations that may use it though it is not public."""
    model_text: str = ""


@dataclass(frozen=True, slots=True)
class Offering:
    """A model under an organisation's own name."""

    name: str
    organization_id: UUID
    model: Model
    active: bool
    created_unix: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything, as of one reading. ``models`` is by every name but those of offerings."""

    keys: Mapping[bytes, Key] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)
    offerings: Mapping[str, Offering] = field(default_factory=dict)

    @property
    def has_budgets(self) -> bool:
        """Whether any key has tokens for a month."""
        return any(key.tokens_per_month is not None for key in self.keys.values())
