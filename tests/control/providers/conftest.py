"""The mock cloud as a process, and machines asked for."""

import asyncio
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from control.providers.interface import MachineRequest
from fleetpulse.local.ports import LOOPBACK, free_port
from fleetpulse.local.processes import Child

WAIT_SECONDS = 20.0


class MockCloud:
    """A mock cloud's process, which can be restarted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://{LOOPBACK}:{self.port}"
        command = ["control.providers.mock", "--port", str(self.port), "--data-dir", str(folder)]
        self.child = Child("mock-cloud", [sys.executable, "-m", *command], folder.with_suffix(".log"))

    def start(self) -> None:
        """Returns when it answers."""
        self.child.start()
        self.child.wait_until(partial(answers, f"{self.url}/healthz"), WAIT_SECONDS)

    async def post(self, path: str, body: object) -> tuple[int, Any]:
        """Status and answer."""
        async with aiohttp.ClientSession() as session, session.post(self.url + path, json=body) as response:
            return response.status, await response.json()

    async def machine(self, machine_id: str) -> Any:
        """The machine as the cloud shows it."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/machines/{machine_id}") as response:
            return await response.json()


def answers(url: str) -> bool:
    """Whether a server answers at all."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture
def mock_cloud(tmp_path: Path) -> Iterator[MockCloud]:
    """A cloud with no machines."""
    cloud = MockCloud(tmp_path / "cloud")
    try:
        cloud.start()
        yield cloud
    finally:
        cloud.child.stop()


@pytest.fixture
def wanted() -> Callable[..., MachineRequest]:
    """Makes requests of machines."""

    def request(instance_id: str, **changes: Any) -> MachineRequest:
        # Nobody listens at the broker's address: the agent spools, and is well otherwise.
        environment = {
            "FLEETPULSE_KAFKA_BOOTSTRAP": f"{LOOPBACK}:{free_port()}",
            "FLEETPULSE_AGENT_INSTANCE_ID": instance_id,
            "FLEETPULSE_AGENT_HEARTBEAT_INTERVAL_SECONDS": "0.5",
            "FLEETPULSE_AGENT_SAMPLE_INTERVAL_SECONDS": "0.5",
        }
        given = {"zone": "mock-east-1", "instance_type": "mock-h100-2", "model": "tiny", "options": {}} | changes
        return MachineRequest(instance_id=instance_id, worker_environment=environment, **given)

    return request


@pytest.fixture
def until() -> Callable[..., Awaitable[Any]]:
    """Ask until the answer is true, and give it back."""

    async def wait(
        ask: Callable[[], Awaitable[Any]], what: str = "the condition", seconds: float = WAIT_SECONDS
    ) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            answer = await ask()
            if answer:
                return answer
            if time.monotonic() > deadline:
                pytest.fail(f"{what} did not become true within {seconds} s; last: {answer!r}")
            await asyncio.sleep(0.03)

    return wait


@pytest.fixture
def metrics_of(until: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[str]]:
    """The /metrics of an agent, once it has a text in it."""

    async def read(url: str, text: str) -> str:
        async def ask() -> str | None:
            try:
                async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
                    page = await response.text()
            except aiohttp.ClientError:
                return None
            return page if text in page else None

        found: str = await until(ask, f"{url}/metrics with {text}")
        return found

    return read


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never says anything."""
    with socket.create_server((LOOPBACK, 0)) as server:
        yield server.getsockname()[1]
