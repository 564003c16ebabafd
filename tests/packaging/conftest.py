"""What the files for deployment are held against: the settings that there are, and what the Containerfile makes."""

import json
import os
import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleetpulse.settings import (
    GROUPS,
    AgentSettings,
    CollectorSettings,
    ControlSettings,
    ProxySettings,
    names,
)

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Image:
    """What a stage of the Containerfile says of its image."""

    base: str
    environment: dict[str, str] = field(default_factory=dict)
    user: str = ""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    health_check: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    copied: tuple[str, ...] = ()


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def ports() -> dict[str, int]:
    """The usual port of each service."""
    groups = {
        "agent": AgentSettings,
        "collector": CollectorSettings,
        "control": ControlSettings,
        "proxy": ProxySettings,
    }
    return {service: int(group.model_fields["port"].default) for service, group in groups.items()}


@pytest.fixture(scope="session")
def settings() -> set[str]:
    """Every environment variable that a service reads."""
    return {variable for group in GROUPS for variable in names(group).values()}


@pytest.fixture(scope="session")
def images() -> dict[str, Image]:
    """Each stage of the Containerfile, with what it has from the stage that it is made from."""
    stages: dict[str, Image] = {}
    name = ""
    text = re.sub(r"\\\n", " ", (ROOT / "compose" / "Containerfile").read_text())
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = replace(stages[base], base=base) if base in stages else Image(base)
        elif name:
            stages[name] = _with(stages[name], word, rest)
    return stages


def _with(image: Image, word: str, rest: str) -> Image:
    match word:
        case "ENV":
            given = dict(pair.split("=", 1) for pair in shlex.split(rest))
            return replace(image, environment=image.environment | given)
        case "USER":
            return replace(image, user=rest)
        case "ENTRYPOINT":
            return replace(image, entrypoint=tuple(json.loads(rest)), command=())
        case "CMD":
            return replace(image, command=tuple(json.loads(rest)))
        case "HEALTHCHECK":
            return replace(image, health_check=tuple(json.loads(rest.partition("CMD ")[2])))
        case "EXPOSE":
            return replace(image, ports=(*image.ports, int(rest)))
        case "COPY" if not rest.startswith("--from"):
            sources = [word for word in rest.split()[:-1] if not word.startswith("--")]
            return replace(image, copied=(*image.copied, *sources))
    return image


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    """compose.yaml, with its anchors resolved."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose" / "compose.yaml").read_text())
    return loaded


@pytest.fixture(scope="session")
def manifests() -> list[dict[str, Any]]:
    """The chart with its own values, as it was rendered last."""
    text = (ROOT / "deploy" / "kubernetes" / "fleetpulse.yaml").read_text()
    return [each for each in yaml.safe_load_all(text) if each]


@pytest.fixture(scope="session")
def clean_environment() -> dict[str, str]:
    """The environment without any setting of ours."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("FLEETPULSE_", "WORKER_SIMULATE"))
    }
