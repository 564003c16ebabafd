"""What a new server does at its first start: install the agent into an environment of its own, and keep it running."""

import base64
import json
from typing import Any, Final

from control.providers.installation import (
    AGENT_PORT,
    AGENT_UNIT,
    ENGINE_UNIT,
    agent_environment,
    engine_arguments,
    environment_file,
    unit,
)
from control.providers.interface import MachineRequest
from fleetpulse.settings import ScalewaySettings

_FOLDER: Final = "/opt/fleetpulse"
_SETTINGS: Final = "/etc/fleetpulse/agent.env"
_BOOT: Final = "multi-user.target"


def cloud_init(request: MachineRequest, settings: ScalewaySettings) -> str:
    """A #cloud-config document; JSON is YAML. Raises ProviderError."""
    engine = engine_arguments(settings.engine_command, request.model)
    environment = agent_environment(request, AGENT_PORT, settings.engine_port if engine else None, settings.engine)
    agent = unit("fleetpulse agent", [f"{_FOLDER}/bin/fleetpulse", "agent"], _SETTINGS, _BOOT)
    files = [
        _file(_SETTINGS, environment_file(environment), "0600"),
        _file(f"/etc/systemd/system/{AGENT_UNIT}", agent, "0644"),
    ]
    units = [AGENT_UNIT]
    if engine:
        files.append(_file(f"/etc/systemd/system/{ENGINE_UNIT}", unit("engine", engine, None, _BOOT), "0644"))
        units.append(ENGINE_UNIT)
    document = {
        "package_update": True,
        "packages": ["python3-venv"],
        "write_files": files,
        # Lists are run as they are, without a shell.
        "runcmd": [
            ["python3", "-m", "venv", _FOLDER],
            [f"{_FOLDER}/bin/pip", "install", "--quiet", settings.agent_package],
            ["systemctl", "daemon-reload"],
            *(["systemctl", "enable", "--now", name] for name in units),
        ],
    }
    return f"#cloud-config\n{json.dumps(document, indent=1)}\n"


def _file(path: str, content: str, permissions: str) -> dict[str, Any]:
    encoded = base64.b64encode(content.encode()).decode()
    return {"path": path, "permissions": permissions, "owner": "root:root", "encoding": "b64", "content": encoded}
