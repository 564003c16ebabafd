"""What ``fleetpulse up`` keeps in its data folder besides the data: a lock, secrets, ports, and ``fleetpulse.json``."""

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fleetpulse.local.ports import free_port, is_free
from fleetpulse.local.processes import StartError

STATE_FILE: Final = "fleetpulse.json"
_SECRETS_FILE: Final = "secrets.json"
_PORTS_FILE: Final = "ports.json"


@dataclass(frozen=True, slots=True)
class Secrets:
    """Keys of a stack, the same at every start. ``inference_key`` is empty until control has made one."""

    admin_key: str
    inference_key: str
    worker_token: str


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the folder; the lock is free as soon as this process is gone, however it ended.

    Raises StartError when another process has it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(
                f"a stack runs in {data_dir} already: stop it, or choose another folder with --data-dir"
            ) from None
        yield
    finally:
        os.close(descriptor)


def kept_secrets(data_dir: Path) -> Secrets:
    """The folder's secrets, made at the first start. Raises StartError when the file is damaged."""
    path = data_dir / _SECRETS_FILE
    try:
        kept = json.loads(path.read_text())
        return Secrets(kept["admin_key"], kept["inference_key"], kept["worker_token"])
    except FileNotFoundError:
        made = Secrets(f"fpa-{secrets.token_urlsafe(32)}", "", f"fpw-{secrets.token_urlsafe(32)}")
    except (ValueError, KeyError, TypeError) as error:
        raise StartError(f"{path} is damaged ({error!r}): delete it, and new keys are made") from error
    keep_secrets(data_dir, made)
    return made


def keep_secrets(data_dir: Path, kept: Secrets) -> None:
    """Write the folder's secrets, readable by their owner alone."""
    _write_private(data_dir / _SECRETS_FILE, {name: getattr(kept, name) for name in Secrets.__slots__})


def kept_port(data_dir: Path, name: str) -> int:
    """The port a part had at its last start, while it is free; else a new one, which is remembered."""
    path = data_dir / _PORTS_FILE
    ports = _read(path)
    port = ports.get(name)
    if not isinstance(port, int) or not is_free(port):
        port = free_port()
        _write_private(path, {**ports, name: port})
    return port


def write_state(data_dir: Path, state: Mapping[str, Any]) -> None:
    """Write ``fleetpulse.json``, all at once and readable by its owner alone."""
    _write_private(data_dir / STATE_FILE, state)


def has_state(data_dir: Path) -> bool:
    """Whether there is a ``fleetpulse.json``."""
    return (data_dir / STATE_FILE).exists()


def remove_state(data_dir: Path) -> None:
    """Remove ``fleetpulse.json``: the stack is not up any more."""
    (data_dir / STATE_FILE).unlink(missing_ok=True)


def running_state(data_dir: Path) -> dict[str, Any]:
    """``fleetpulse.json`` of a stack that is up; empty when none is."""
    if not has_state(data_dir):
        return {}
    try:
        with locked(data_dir):
            return {}
    except StartError:
        return _read(data_dir / STATE_FILE)


def leftover_pids(data_dir: Path) -> list[int]:
    """Processes of a stack that was killed rather than stopped; some may still be ending."""
    pids = _read(data_dir / STATE_FILE).get("pids")
    return [pid for pid in pids.values() if isinstance(pid, int)] if isinstance(pids, dict) else []


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_private(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.new")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    partial.replace(path)
