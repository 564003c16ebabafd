"""The agent's lanes and the folder their spools share, held by one agent at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

from agent.delivery import Lane
from agent.identity import WorkerIdentity, state_folder
from agent.signals import Signals
from agent.spool import Spool
from agent.transport import Kind, Transport
from fleetpulse.settings import AgentSettings, SettingsError

# Shares of the bound. A sample is about thirty times as large as a heartbeat, and rarer.
SHARES: Final[Mapping[Kind, float]] = {"heartbeats": 1 / 8, "metrics": 7 / 8}


def spool_folder(settings: AgentSettings, worker_id: str) -> Path:
    """The setting, else one of the worker's own below the state folder."""
    return settings.spool_dir or state_folder(settings) / "spool" / quote(worker_id, safe="")


@contextlib.contextmanager
def open_lanes(
    settings: AgentSettings, identity: WorkerIdentity, transport: Transport, signals: Signals
) -> Iterator[dict[Kind, Lane]]:
    """Lanes with their spools; at the end of the block what is unsent is put on disk.

    Raises SettingsError when the folder cannot be used, or another agent uses it.
    """
    folder = spool_folder(settings, identity.worker_id)
    with contextlib.ExitStack() as stack:
        try:
            if settings.spool_bytes:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_held(folder))
            spools = {kind: Spool(folder / kind, int(settings.spool_bytes * share)) for kind, share in SHARES.items()}
        except OSError as error:
            raise SettingsError(f"FLEETPULSE_AGENT_SPOOL_DIR: {folder} cannot be used: {error.strerror}") from error
        lanes = {kind: Lane(kind, transport, spool, signals) for kind, spool in spools.items()}
        for lane in lanes.values():
            stack.callback(lane.close)
        yield lanes


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(
                f"FLEETPULSE_AGENT_SPOOL_DIR: another agent uses {folder}; give each its own"
            ) from error
        yield
    finally:
        os.close(descriptor)
