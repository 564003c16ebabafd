"""The control process that is measured, and where its parts are."""

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fleetpulse.local.ports import free_port
from fleetpulse.local.processes import Child

ADMIN_KEY = "the admin key of the benchmark"
INSTANCES = 10_000
_NEVER = "1000000"
NO_JOBS: Mapping[str, str] = {
    "FLEETPULSE_JOBS_POLL_INTERVAL_SECONDS": _NEVER,
    "FLEETPULSE_JOBS_WORKER_WATCHDOG_INTERVAL_SECONDS": _NEVER,
}


@dataclass(frozen=True)
class Parts:
    """What runs beside control."""

    folder: Path
    url: str
    postgres_pid: int
    bootstrap: str


@contextmanager
def control_process(parts: Parts, environment: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """A control process that is ready, while the block runs; its process id and port."""
    port = free_port()
    own = {
        "FLEETPULSE_CONTROL_PORT": str(port),
        "FLEETPULSE_CONTROL_ADMIN_KEY": ADMIN_KEY,
        "FLEETPULSE_DATABASE_URL": parts.url,
        "FLEETPULSE_KAFKA_BOOTSTRAP": parts.bootstrap,
    }
    command = (sys.executable, "-m", "fleetpulse", "control")
    child = Child("control", command, parts.folder / f"control-{port}.log", os.environ | own | dict(environment))
    child.start()
    try:
        child.wait_until(lambda: _is_ready(port), 60)
        yield child.pid, port
    finally:
        child.stop()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return True
    except (OSError, urllib.error.HTTPError):
        return False
