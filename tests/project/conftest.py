"""The checkout as files, and what each service shows of itself at /metrics."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from fleetpulse.local.ports import LOOPBACK, free_port
from fleetpulse.local.processes import Child

SERVICES = ("agent", "collector", "control", "proxy")
START_SECONDS = 30.0


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tracked_files(root: Path) -> list[Path]:
    """Every file that git has and that is there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    return [path for name in listed.stdout.split("\0") if name and (path := root / name).is_file()]


@pytest.fixture(scope="session")
def pages(root: Path) -> dict[str, str]:
    """The documents for people, by name."""
    found = [
        root / "README.md",
        root / "ARCHITECTURE.md",
        root / "CONTRIBUTING.md",
        *sorted((root / "docs").glob("*.md")),
    ]
    return {str(path.relative_to(root)): path.read_text() for path in found}


@pytest.fixture(scope="session")
def clean_environment() -> dict[str, str]:
    """The environment without any setting of ours."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("FLEETPULSE_", "WORKER_SIMULATE"))
    }


@pytest.fixture(scope="session")
def metrics_texts(
    tmp_path_factory: pytest.TempPathFactory, clean_environment: dict[str, str]
) -> Iterator[dict[str, str]]:
    """The /metrics of each service, with neither a broker nor a database there."""
    folder = tmp_path_factory.mktemp("services")
    # Nobody listens there, ever: what these send must not reach the broker of a later test.
    nowhere = 1
    environment = clean_environment | {
        "FLEETPULSE_KAFKA_BOOTSTRAP": f"{LOOPBACK}:{nowhere}",
        "FLEETPULSE_DATABASE_URL": f"postgresql://postgres@{LOOPBACK}:{nowhere}/none",
        "FLEETPULSE_AGENT_STATE_DIR": str(folder / "agent"),
        "FLEETPULSE_AGENT_SAMPLE_INTERVAL_SECONDS": "0.5",
        "FLEETPULSE_AGENT_WORKER_ID": "worker-1",
        "WORKER_SIMULATE_GPU_COUNT": "1",
    }
    with ExitStack() as stack:
        urls = {}
        children = []
        for service in SERVICES:
            port = free_port()
            urls[service] = f"http://{LOOPBACK}:{port}/metrics"
            own = environment | {f"FLEETPULSE_{service.upper()}_PORT": str(port)}
            child = Child(service, [sys.executable, "-m", "fleetpulse", service], folder / f"{service}.log", own)
            child.start()
            stack.callback(child.stop)
            children.append(child)
        for child in children:
            # An agent shows readings once it has taken a sample.
            wanted = "fleetpulse_agent_gpu_power_watts" if child.name == "agent" else "fleetpulse_"
            child.wait_until(partial(_shows, urls[child.name], wanted), START_SECONDS)
        yield {service: _text(url) for service, url in urls.items()}


def _text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return str(response.read().decode())


def _shows(url: str, wanted: str) -> bool:
    try:
        return wanted in _text(url)
    except urllib.error.HTTPError as error:
        # The error holds the connection.
        error.close()
        return False
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
