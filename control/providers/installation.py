"""What providers put on a real machine: the agent's settings as a file, and systemd units for agent and engine."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from control.providers.interface import MachineRequest, ProviderError
from fleetpulse.settings import AgentSettings
from fleetpulse.settings.fields import EngineKind

AGENT_PORT: Final = int(AgentSettings.model_fields["port"].default)
AGENT_UNIT: Final = "fleetpulse-agent.service"
ENGINE_UNIT: Final = "fleetpulse-engine.service"
_NAME: Final = re.compile(r"[A-Z_][A-Z0-9_]*")
_CONTROL_CHARACTER: Final = re.compile(r"[\x00-\x1f\x7f]")


def agent_environment(
    request: MachineRequest, agent_port: int, engine_port: int | None, engine: EngineKind | None
) -> dict[str, str]:
    """The agent's settings for a machine of its own: what control gave wins, but for the ports and the engine's kind
    where it is known, which are the machine's."""
    usual = {"FLEETPULSE_AGENT_ENGINE": "vllm"} if engine_port is not None else {}
    own = {"FLEETPULSE_AGENT_PORT": str(agent_port)}
    if engine_port is not None:
        own["FLEETPULSE_AGENT_ENGINE_URL"] = f"http://127.0.0.1:{engine_port}"
        if engine is not None:
            own["FLEETPULSE_AGENT_ENGINE"] = engine
    defaults = {"FLEETPULSE_AGENT_HOST": "0.0.0.0", "FLEETPULSE_AGENT_INSTANCE_ID": request.instance_id}  # noqa: S104
    return {**defaults, **usual, **request.worker_environment, **own}


def environment_file(environment: Mapping[str, str]) -> str:
    """Settings as both systemd's EnvironmentFile= and a shell read them. Raises ProviderError for what neither can."""
    lines = []
    for name, value in environment.items():
        if not _NAME.fullmatch(name) or _CONTROL_CHARACTER.search(value):
            raise ProviderError(f"the agent's setting {name!r} cannot be written to a file", retryable=False)
        escaped = re.sub(r'([\\"$`])', r"\\\1", value)
        lines.append(f'{name}="{escaped}"\n')
    return "".join(lines)


def engine_arguments(command: str, model: str | None) -> list[str]:
    """The engine's command line, empty where there is no engine to start. Raises ProviderError."""
    if not command or model is None:
        return []
    try:
        return [part.replace("{model}", model) for part in shlex.split(command)]
    except ValueError as error:
        raise ProviderError(f"the engine's command is no command line: {error}", retryable=False) from error


def unit(description: str, arguments: Sequence[str], environment_path: str | None, wanted_by: str) -> str:
    """A systemd unit that keeps a program running. Raises ProviderError for an argument that cannot be written."""
    settings = ""
    if environment_path is not None:
        settings = f"EnvironmentFile={environment_path}\nStateDirectory=fleetpulse-agent\n"
    return (
        f"[Unit]\nDescription={description}\nAfter=network-online.target\nWants=network-online.target\n\n"
        f"[Service]\n{settings}ExecStart={' '.join(map(_unit_argument, arguments))}\n"
        "Restart=always\nRestartSec=2\n\n"
        f"[Install]\nWantedBy={wanted_by}\n"
    )


def _unit_argument(text: str) -> str:
    """Quoted by systemd.service(5); specifiers and variables are taken as they stand."""
    if _CONTROL_CHARACTER.search(text):
        raise ProviderError(f"{text!r} cannot be an argument of a service", retryable=False)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
