"""Everything for real, as processes: database, broker, collector, mock cloud and two control services."""

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import psycopg
import pytest

from fleetpulse.client.control import ControlClient
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.deployment import is_offered
from fleetpulse.local.ports import LOOPBACK, free_port
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.local.processes import Child
from fleetpulse.settings import StreamSettings
from fleetpulse.stream.admin import ensure_topics

ADMIN_KEY = "journeys"
Answer = TypeVar("Answer")

# What takes minutes in production, in seconds.
HURRIED = {
    "FLEETPULSE_JOBS_HEALTH_CHECK_INTERVAL_SECONDS": "0.3",
    "FLEETPULSE_JOBS_HEALTH_CHECK_MOST_SECONDS": "1",
    "FLEETPULSE_JOBS_PROVISIONING_INTERVAL_SECONDS": "0.3",
    "FLEETPULSE_JOBS_TERMINATOR_INTERVAL_SECONDS": "0.3",
    "FLEETPULSE_JOBS_TERMINATOR_MOST_SECONDS": "1",
    "FLEETPULSE_JOBS_WATCH_DOG_INTERVAL_SECONDS": "1",
    "FLEETPULSE_JOBS_RECOVERY_INTERVAL_SECONDS": "0.5",
    "FLEETPULSE_JOBS_BOOTING_STUCK_SECONDS": "15",
    "FLEETPULSE_JOBS_INSTALLING_STUCK_SECONDS": "20",
    "FLEETPULSE_JOBS_STARTING_STUCK_SECONDS": "20",
    "FLEETPULSE_JOBS_STUCK_FLOOR_SECONDS": "15",
    "FLEETPULSE_JOBS_FAILED_KEEP_SECONDS": "1",
    "FLEETPULSE_JOBS_ARCHIVE_AFTER_SECONDS": "2",
    "FLEETPULSE_JOBS_LEASE_SECONDS": "2",
    "FLEETPULSE_JOBS_ENGINE_STALL_SECONDS": "3",
    "FLEETPULSE_JOBS_WORKER_ENVIRONMENT": "FLEETPULSE_AGENT_SAMPLE_INTERVAL_SECONDS=1",
}


@dataclass
class Fleet:
    """The running services."""

    database_url: str
    broker: EmbeddedBroker
    cloud_url: str
    controls: list[Child]
    control_urls: list[str]

    async def machines(self) -> list[dict[str, Any]]:
        """What the cloud has."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.cloud_url}/machines") as answer:
            found: list[dict[str, Any]] = await answer.json(content_type=None)
            return found

    async def machine_of(self, instance_id: str) -> dict[str, Any]:
        """The machine of an instance."""
        return next(each for each in await self.machines() if each["instance_id"] == instance_id)

    async def trouble(self, instance_id: str, **faults: Any) -> None:
        """Have something go wrong on an instance's machine."""
        machine = await self.machine_of(instance_id)
        url = f"{self.cloud_url}/machines/{machine['machine_id']}/faults"
        async with aiohttp.ClientSession() as session, session.post(url, json=faults) as answer:
            assert answer.status == 200, await answer.text()

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of a query."""
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(statement, values).fetchall()


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One for all tests of this run: each makes instances of its own."""
    # Not pytest's own folder: under root the database server runs as another account.
    folder = Path(tempfile.mkdtemp(prefix="fleetpulse-journeys-"))
    try:
        with ExitStack() as stack:
            postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres", parameters={"fsync": "off"}))
            broker = EmbeddedBroker(folder / "broker", free_port())
            broker.start()
            stack.callback(broker.stop)
            asyncio.run(ensure_topics(StreamSettings(bootstrap=broker.bootstrap)))
            ports = [free_port() for _ in range(4)]
            cloud_url = f"http://{LOOPBACK}:{ports[0]}"
            shared = {
                **{name: value for name, value in os.environ.items() if not name.startswith("FLEETPULSE_")},
                "FLEETPULSE_DATABASE_URL": postgres.url(),
                "FLEETPULSE_KAFKA_BOOTSTRAP": broker.bootstrap,
            }

            def run(name: str, module: list[str], settings: Mapping[str, str]) -> Child:
                child = Child(name, [sys.executable, "-m", *module], folder / f"{name}.log", {**shared, **settings})
                child.start()
                stack.callback(child.stop)
                return child

            cloud = ["control.providers.mock", "--port", str(ports[0]), "--data-dir", str(folder / "cloud")]
            run("cloud", cloud, {})
            run("collector", ["fleetpulse", "collector"], {"FLEETPULSE_COLLECTOR_PORT": str(ports[1])})
            control = {
                **HURRIED,
                "FLEETPULSE_CONTROL_ADMIN_KEY": ADMIN_KEY,
                "FLEETPULSE_CONTROL_PROVIDERS": "mock",
                "FLEETPULSE_MOCK_URL": cloud_url,
            }
            controls = [
                run(f"control-{port}", ["fleetpulse", "control"], {**control, "FLEETPULSE_CONTROL_PORT": str(port)})
                for port in ports[2:]
            ]
            yield Fleet(
                postgres.url(), broker, cloud_url, controls, [f"http://{LOOPBACK}:{port}" for port in ports[2:]]
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


Until = Callable[..., Awaitable[Any]]


@pytest.fixture
def until() -> Until:
    """Ask until there is an answer; errors of a service that is not there yet are waited out."""

    async def ask(what: Callable[[], Awaitable[Any]], seconds: float = 60.0) -> Any:
        deadline, last = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            try:
                if last := await what():
                    return last
            except (aiohttp.ClientError, OSError) as error:
                last = error
            await asyncio.sleep(0.05)
        return pytest.fail(f"not within {seconds:g} s; last: {last!r}")

    return ask


@pytest.fixture
async def client(fleet: Fleet, until: Until) -> AsyncIterator[ControlClient]:
    """Of the second control service; the model is known, the catalogue read, and nothing holds the jobs back."""
    async with ControlClient.connected(fleet.control_urls[1], ADMIN_KEY) as connected:
        await until(lambda: is_offered(connected))
        if not await connected.all("/models", "models"):
            await connected.post("/models", {"hugging_face_id": "mock-model"})
        await until(lambda: calm(connected), 60)
        yield connected


async def calm(client: ControlClient) -> bool:
    """Whether silence would be believed."""
    return not (await client.workers())["mass_silence"]["active"]
