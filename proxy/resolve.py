"""From the name in a request to the model that it stands for."""

from collections.abc import Iterator
from typing import Final

from proxy.access import Key, Model, Offering, Snapshot
from proxy.errors import ProxyError

_UUID_CHARACTERS: Final = 36


def resolve(name: str, key: Key, snapshot: Snapshot) -> Model:
    """The model: by UUID, Hugging Face id, alias, or as an offering's organisation/code.

    Raises ProxyError: 404 for what is unknown or inactive, 403 for what this key may not use.
    """
    model = snapshot.models.get(name)
    offering = None
    if model is None:
        offering = snapshot.offerings.get(name)
        if offering is not None:
            model = offering.model
        elif len(name) == _UUID_CHARACTERS:
            model = snapshot.models.get(name.lower())
    if model is None or not model.active or (offering is not None and not offering.active):
        raise ProxyError(404, "model_not_found", f"the model {_shown(name)} does not exist", "model")
    if not may_use(key, model, offering):
        raise ProxyError(403, "model_not_accessible", f"this API key may not use the model {_shown(name)}", "model")
    return model


def may_use(key: Key, model: Model, offering: Offering | None = None) -> bool:
    """Whether the organisation may use the model, and the key is not limited to others."""
    granted = model.public or key.organization_id in model.organization_ids
    own = offering is not None and offering.organization_id == key.organization_id
    return (granted or own) and (key.model_ids is None or model.model_id in key.model_ids)


def usable(key: Key, snapshot: Snapshot) -> Iterator[tuple[str, int, str]]:
    """Name, creation (Unix seconds) and owner of each model and each own offering that a key may use."""
    for name, model in snapshot.models.items():
        if name == model.hugging_face_id and model.active and may_use(key, model):
            yield name, model.created_unix, name.partition("/")[0]
    for name, offering in snapshot.offerings.items():
        own = offering.organization_id == key.organization_id
        if own and offering.active and offering.model.active and may_use(key, offering.model, offering):
            yield name, offering.created_unix, key.organization


def _shown(name: str) -> str:
    """A client's text within ours: short and printable."""
    return "".join(character if character.isprintable() else "?" for character in name[:100])
