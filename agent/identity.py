"""Who this worker is: its ids, the folder for what it keeps, and the resource attributes of its metrics."""

import hashlib
import os
import platform
import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import fleetpulse
from fleetpulse.settings import AgentSettings, SettingsError
from fleetpulse.stream import identity

MACHINE_ID_FILES: Final = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
# What fleetpulse.stream.heartbeat accepts as an identity.
_IDENTITY: Final = re.compile(r"[\x21-\x7e]{1,200}")
_MACHINE_ID: Final = re.compile(r"[0-9a-f]{32}")
# semantic conventions name architectures differently from uname
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm32"}


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Ids of the worker and of this run of its agent. ``boot_id`` is new with every start."""

    worker_id: str
    instance_id: str
    boot_id: str
    host_name: str
    host_id: str
    host_arch: str
    agent_version: str
    agent_checksum: str

    def resource_attributes(self) -> dict[str, str]:
        """OTLP resource attributes, in the order in which every message holds them."""
        return {
            identity.SERVICE_NAME: "fleetpulse-agent",
            identity.SERVICE_VERSION: self.agent_version,
            identity.SERVICE_INSTANCE_ID: self.boot_id,
            identity.HOST_NAME: self.host_name,
            identity.HOST_ID: self.host_id,
            "host.arch": self.host_arch,
            identity.WORKER_ID: self.worker_id,
            identity.INSTANCE_ID: self.instance_id,
            identity.BOOT_ID: self.boot_id,
        }


def state_folder(settings: AgentSettings, environment: Mapping[str, str] = os.environ) -> Path:
    """Folder of what survives a restart: the setting, else systemd's, else the user's."""
    if settings.state_dir is not None:
        return settings.state_dir
    if environment.get("STATE_DIRECTORY"):
        return Path(environment["STATE_DIRECTORY"].split(":")[0])
    base = environment.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "fleetpulse-agent"


def identify(settings: AgentSettings, machine_id_files: tuple[Path, ...] = MACHINE_ID_FILES) -> WorkerIdentity:
    """Raises SettingsError for an id that cannot be one, or a state folder that cannot be written."""
    machine_id = _machine_id(machine_id_files)
    worker_id = settings.worker_id or _default_worker_id(machine_id, state_folder(settings))
    return WorkerIdentity(
        worker_id=_checked("FLEETPULSE_AGENT_WORKER_ID", worker_id),
        instance_id=_checked("FLEETPULSE_AGENT_INSTANCE_ID", settings.instance_id or worker_id),
        boot_id=str(uuid.uuid4()),
        host_name=socket.gethostname(),
        host_id=machine_id or worker_id,
        host_arch=_ARCHITECTURES.get(platform.machine(), platform.machine()),
        agent_version=fleetpulse.__version__,
        agent_checksum=package_checksum(Path(__file__).parent),
    )


def package_checksum(folder: Path) -> str:
    """SHA-256 (hex) over the names and contents of a package's Python files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _checked(name: str, value: str) -> str:
    if not _IDENTITY.fullmatch(value):
        raise SettingsError(f"{name}: {value!r} must be 1 to 200 printable ASCII characters without spaces")
    return value


def _machine_id(files: tuple[Path, ...]) -> str | None:
    for path in files:
        try:
            text = path.read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            continue
        if _MACHINE_ID.fullmatch(text):
            return text
    return None


def _default_worker_id(machine_id: str | None, folder: Path) -> str:
    """The machine id, hashed as machine-id(5) asks of those who pass it on; else an id kept in the state folder."""
    if machine_id is not None:
        return hashlib.sha256(f"fleetpulse-worker:{machine_id}".encode()).hexdigest()[:32]
    kept = folder / "worker-id"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            made = kept.with_suffix(".new")
            made.write_text(uuid.uuid4().hex, encoding="ascii")
            made.replace(kept)
        return kept.read_text(encoding="ascii").strip()
    except OSError as error:
        raise SettingsError(
            f"FLEETPULSE_AGENT_WORKER_ID: unset, there is no machine id, and {kept} cannot be kept: {error.strerror}"
        ) from error
