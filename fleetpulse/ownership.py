"""Whether ``agent``, ``collector``, ``control`` and ``proxy`` are ours: the names are common words, and pip lets
another distribution (python-control, proxy.py) overwrite or shadow a package of the same name without a word."""

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import fleetpulse

DISTRIBUTION: Final = "fleetpulse"
SERVICES: Final = ("agent", "collector", "control", "proxy")


def strangers(owners: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """One line for each service package that is not ours, saying whose it is and what to do; empty when all are.

    ``owners`` maps a package's name to the distributions that install it, and is asked of the environment when None.
    """
    owners = importlib.metadata.packages_distributions() if owners is None else owners
    lines = []
    for name in SERVICES:
        others = sorted({owner for owner in owners.get(name, ()) if owner.lower() != DISTRIBUTION})
        if others:
            lines.append(f"the package {name} is also installed by {', '.join(others)}; {_ADVICE}")
        elif (place := _place(name)) is None or place.parent != _home():
            lines.append(f"the package {name} is imported from {place}, not from {_home()}; {_ADVICE}")
    return lines


_ADVICE: Final = "install fleetpulse into an environment of its own (uv tool install, pipx, a virtual environment)"


def _home() -> Path:
    return Path(fleetpulse.__file__).resolve().parent.parent


def _place(name: str) -> Path | None:
    """Folder that an import of the package would take."""
    found = importlib.util.find_spec(name)
    return Path(found.origin).resolve().parent if found is not None and found.origin is not None else None
