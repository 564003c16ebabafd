"""What is put on a machine for its runtime."""

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from control.providers.installation import agent_environment, engine_arguments, environment_file
from control.providers.interface import MachineRequest, ProviderError
from control.providers.static.machines import StaticMachine
from control.providers.static.remote import SCRIPT
from fleetpulse.settings import StaticSettings

_RUN: Final = 'cd "$(dirname "$0")"\n'


@dataclass(frozen=True, slots=True)
class Package:
    """Files by name, and the arguments of ``install`` in worker.sh; none where nothing is to be installed."""

    files: dict[str, bytes]
    installation: tuple[str, ...]

    @property
    def version(self) -> str:
        """Differs when anything in it does."""
        digest = hashlib.sha256(repr(self.installation).encode())
        for name, content in sorted(self.files.items()):
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()

    @property
    def has_engine(self) -> bool:
        """Whether an engine is started."""
        return "engine.sh" in self.files


def package(machine: StaticMachine, request: MachineRequest, settings: StaticSettings) -> Package:
    """Raises ProviderError for a setting that cannot be written, and a wheel that is not there."""
    environment = agent_environment(request, machine.agent_port, machine.engine_port, machine.engine)
    environment.setdefault("FLEETPULSE_AGENT_STATE_DIR", "state")
    agent = machine.agent_command or ("venv/bin/fleetpulse", "agent")
    start_agent = f"{_RUN}set -a\n. ./agent.env\nset +a\nexec {shlex.join(agent)}\n"
    files = {
        "worker.sh": SCRIPT.encode(),
        "agent.env": environment_file(environment).encode(),
        "agent.sh": start_agent.encode(),
    }
    if engine := engine_arguments(machine.engine_command, request.model):
        files["engine.sh"] = f"{_RUN}exec {shlex.join(engine)}\n".encode()
    if machine.agent_command:
        return Package(files, ())
    wanted, key = settings.agent_package, settings.agent_package
    path, bracket, extras = wanted.partition("[")
    if path.endswith(".whl"):
        wheel = Path(path)
        try:
            files[wheel.name] = wheel.read_bytes()
        except OSError as error:
            raise ProviderError(
                f"FLEETPULSE_STATIC_AGENT_PACKAGE: {path}: {error.strerror}", retryable=False
            ) from error
        wanted, key = f"./{wheel.name}{bracket}{extras}", hashlib.sha256(files[wheel.name]).hexdigest()
    return Package(files, (key, wanted, machine.python, str(settings.install_timeout_seconds)))
