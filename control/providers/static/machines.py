"""The file that lists the machines."""

import json
import tomllib
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final

import msgspec

from control.providers.installation import AGENT_PORT
from fleetpulse.settings import SettingsError
from fleetpulse.settings.fields import EngineKind

Port = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=400, pattern=r"^[^\x00-\x1f]*$")]
_SETTING: Final = "FLEETPULSE_STATIC_MACHINES_FILE"


class StaticMachine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One machine. Relative paths are those of the user that runs control; ~ is that user's home."""

    name: Name
    host: Text
    user: Text
    instance_type: Text
    zone: Text = "static"
    port: Port = 22
    key_file: Text | None = None
    """Private key; the SSH agent's and the usual ones when unset."""
    known_hosts: Text = "~/.ssh/known_hosts"
    """The machine's host key must be in it."""
    folder: Name = "fleetpulse"
    """Below the user's home on the machine."""
    python: Text = "python3"
    agent_command: tuple[Text, ...] = ()
    """Of an agent that is installed already; nothing is installed then."""
    agent_port: Port = AGENT_PORT
    engine_port: Port | None = None
    engine: EngineKind | None = None
    """vllm when unset, unless the environment of all workers names another."""
    engine_command: str = ""
    """Starts the engine, {model} being the model's name; empty where it runs by itself."""
    gpu_model: str | None = None
    gpu_count: Annotated[int, msgspec.Meta(ge=0)] = 0
    gpu_memory_bytes: int | None = None
    cpu_count: int | None = None
    memory_bytes: int | None = None
    price_per_hour: Decimal | None = None
    currency: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}$")] = "EUR"


class _File(msgspec.Struct, forbid_unknown_fields=True):
    machines: list[StaticMachine]


def read(path: Path) -> tuple[StaticMachine, ...]:
    """The machines, from JSON when the file is named so, else from TOML. Raises SettingsError."""
    try:
        text = path.read_text()
        content = (
            json.loads(text, parse_float=Decimal)
            if path.suffix == ".json"
            else tomllib.loads(text, parse_float=Decimal)
        )
        machines = msgspec.convert(content, _File).machines
    except OSError as error:
        raise SettingsError(f"{_SETTING}: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{_SETTING}: {path}: {error}") from error
    twice = [name for name, count in Counter(machine.name for machine in machines).items() if count > 1]
    if below := [each.name for each in machines if each.price_per_hour is not None and each.price_per_hour < 0]:
        raise SettingsError(f"{_SETTING}: {path}: the price of {below[0]} is below 0")
    if portless := [each.name for each in machines if each.engine is not None and each.engine_port is None]:
        raise SettingsError(f"{_SETTING}: {path}: the engine of {portless[0]} has no engine_port")
    if twice:
        raise SettingsError(f"{_SETTING}: {path}: the name {twice[0]} is given twice")
    return tuple(machines)
