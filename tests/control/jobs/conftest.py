"""Jobs on a real database, with a provider that keeps its machines in memory and workers that answer HTTP."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from decimal import Decimal
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import aiohttp
import psycopg
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from control.database import Database
from control.jobs import all_jobs
from control.jobs.framework.context import JobContext
from control.jobs.framework.guard import Guard
from control.jobs.framework.inventories import Inventories
from control.jobs.framework.metrics import JobMetrics
from control.jobs.framework.probes import Probes
from control.jobs.framework.runner import Runner
from control.lifecycle import NewInstance, create, transition
from control.providers.interface import (
    Address,
    Catalogue,
    InstanceType,
    Machine,
    MachineRequest,
    NoSuchMachineError,
    ProviderError,
    Volume,
)
from fleetpulse.http import serving
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.settings import ControlSettings, DatabaseSettings, JobSettings, StreamSettings
from fleetpulse.stream.consumer import StreamReader
from fleetpulse.stream.fleet_view import FleetView
from fleetpulse.stream.heartbeat import Engine, Heartbeat
from fleetpulse.stream.topics import HEARTBEATS

WAIT_SECONDS = 20.0
# What tests write, in an order that references allow.
CLEAR = """
DELETE FROM job_work; DELETE FROM job_states; DELETE FROM lifecycle_outbox; DELETE FROM action_log; DELETE FROM volumes;
DELETE FROM orphan_machines; DELETE FROM outdated_agents; DELETE FROM heartbeats; DELETE FROM workers;
DELETE FROM instances; DELETE FROM deployments; DELETE FROM models; DELETE FROM instance_types; DELETE FROM zones;
DELETE FROM providers; DELETE FROM organizations; UPDATE lifecycle_publisher SET owner = NULL, lease_until = NULL
"""
# Nothing to do with speed: tests wait for conditions, and pauses between attempts only make them slow.
QUICK = {
    "poll_interval_seconds": 0.05,
    "provisioning_interval_seconds": 0.05,
    "health_check_interval_seconds": 0.05,
    "health_check_most_seconds": 0.1,
    "probe_cache_seconds": 0.0,
    "probe_timeout_seconds": 1.0,
    "terminator_interval_seconds": 0.05,
    "draining_interval_seconds": 0.05,
    "watch_dog_interval_seconds": 0.1,
    "recovery_interval_seconds": 0.1,
    "revival_interval_seconds": 0.1,
    "volumes_interval_seconds": 0.1,
    "agent_versions_interval_seconds": 0.1,
    "records_interval_seconds": 0.1,
    "worker_watchdog_interval_seconds": 0.05,
}


class MemoryProvider:
    """Machines in a dictionary, and faults that a test sets."""

    name = "memory"

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}
        self.disks: dict[str, Volume] = {}
        self.running: set[str] = set()
        self.calls: list[str] = []
        self.requests: list[MachineRequest] = []
        self.addresses: dict[str, Address] = {}
        self.default_address: Address | None = None
        self.fail: dict[str, Exception] = {}
        self.deletes_nothing = 0
        self.hidden = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fail:
            raise self.fail[name]

    async def catalogue(self) -> Catalogue:
        self._call("catalogue")
        small = InstanceType("small", "H100", 1, None, None, None, Decimal("2.5"), "EUR", ("z",))
        return Catalogue(("z",), (small,))

    async def create(self, request: MachineRequest) -> Machine:
        self.requests.append(request)
        self._call("create")
        found = next((one for one in self.machines.values() if one.instance_id == request.instance_id), None)
        return found or self.add(f"m-{request.instance_id}", request.instance_id)

    def add(self, machine_id: str, instance_id: str | None, instance_type: str = "small") -> Machine:
        machine = self.machines[machine_id] = Machine(machine_id, "z", instance_id, instance_type, "running")
        return machine

    async def start_runtime(self, machine: Machine, request: MachineRequest) -> None:
        assert request.instance_id == machine.instance_id
        self._call("start_runtime")
        self.running.add(machine.machine_id)

    async def stop_runtime(self, machine: Machine) -> None:
        self._call("stop_runtime")
        self.running.discard(machine.machine_id)

    async def address(self, machine: Machine) -> Address | None:
        self._call("address")
        if machine.machine_id not in self.machines:
            raise NoSuchMachineError(f"no machine {machine.machine_id}")
        return self.addresses.get(machine.machine_id, self.default_address)

    async def delete(self, machine: Machine) -> None:
        self._call("delete")
        if self.deletes_nothing:
            self.deletes_nothing -= 1
            return
        self.machines.pop(machine.machine_id, None)

    async def inventory(self) -> Sequence[Machine]:
        self._call("inventory")
        return [] if self.hidden else list(self.machines.values())

    async def volumes(self) -> Sequence[Volume]:
        self._call("volumes")
        return list(self.disks.values())

    async def delete_volume(self, volume: Volume) -> None:
        self._call("delete_volume")
        self.disks.pop(volume.volume_id, None)


class Worker:
    """An agent and an engine that answer as the test wants."""

    def __init__(self) -> None:
        self.ready = True
        self.unready_body = b'{"missing": {"stream": "none"}}'
        self.models: list[str] = ["a/b"]
        self.url = ""
        self.asked: list[str] = []

    def application(self) -> web.Application:
        app = web.Application()

        async def readyz(request: web.Request) -> web.Response:
            self.asked.append(request.path)
            return web.json_response({}) if self.ready else web.Response(body=self.unready_body, status=503)

        async def healthz(request: web.Request) -> web.Response:
            self.asked.append(request.path)
            return web.json_response({})

        async def models(request: web.Request) -> web.Response:
            self.asked.append(request.path)
            return web.json_response({"data": [{"id": name} for name in self.models]})

        app.router.add_get("/readyz", readyz)
        app.router.add_get("/healthz", healthz)
        app.router.add_get("/v1/models", models)
        return app

    def address(self) -> Address:
        return Address("127.0.0.1", self.url, self.url, ssh_port=None)


class Fleet:
    """A database with instances, a provider, and what jobs need."""

    def __init__(
        self,
        database: Database,
        sql: psycopg.AsyncConnection[Any],
        organization_id: UUID,
        session: aiohttp.ClientSession,
        reader: StreamReader,
        settings: JobSettings,
    ) -> None:
        self.database, self.sql, self.organization_id = database, sql, organization_id
        self.session, self.reader, self.settings = session, reader, settings
        self.provider = MemoryProvider()
        self.view = FleetView()
        self.view.join(time.monotonic() - 1000)
        self.registry = CollectorRegistry()
        self.context = self._context()

    def _context(self) -> JobContext:
        metrics = JobMetrics(self.registry)
        providers = {"memory": self.provider}
        return JobContext(
            database=self.database,
            view=self.view,
            providers=providers,
            settings=self.settings,
            worker_environment={"FLEETPULSE_KAFKA_BOOTSTRAP": "broker:9092"},
            guard=Guard(self.view, self.reader, metrics),
            probes=Probes(self.settings, self.session),
            inventories=Inventories(self.database, providers, self.settings),
            metrics=metrics,
        )

    def runner(self, *names: str) -> Runner:
        return Runner(self.context, [job for job in all_jobs(self.settings) if not names or job.name in names])

    @contextlib.asynccontextmanager
    async def running(self, *names: str) -> AsyncIterator[Runner]:
        """A runner of these jobs, or of all, while the block runs."""
        runner = self.runner(*names)
        task = asyncio.create_task(runner.run())
        try:
            yield runner
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def make(self, instance_id: str, state: str | None = None, machine: bool = True, **fields: Any) -> str:
        """An instance; with a state, as if it had come that far, with its machine."""
        wanted = NewInstance(self.organization_id, "memory", "z", "small", instance_id=instance_id, **fields)
        async with self.database.transaction() as connection:
            await create(connection, wanted, actor="admin")
        if state is not None:
            if machine:
                self.provider.add(f"m-{instance_id}", instance_id)
            await self.sql.execute(
                "UPDATE instances SET state = %s, machine_id = %s, state_since = clock_timestamp(),"
                " version = version + 1 WHERE instance_id = %s",
                (state, f"m-{instance_id}" if machine else None, instance_id),
            )
        return instance_id

    async def move(self, instance_id: str, to_state: Any) -> int | None:
        async with self.database.transaction() as connection:
            return await transition(
                connection, instance_id, to_state, reason="test", detail="Test.", evidence={}, actor="admin"
            )

    async def rows(self, statement: Any, *parameters: Any) -> list[Any]:
        return await (await self.sql.execute(statement, parameters)).fetchall()

    async def state(self, instance_id: str) -> str:
        ((state,),) = await self.rows("SELECT state FROM instances WHERE instance_id = %s", instance_id)
        return str(state)

    async def history(self, instance_id: str) -> list[tuple[str, str]]:
        """State and reason of each step."""
        return await self.rows(
            "SELECT to_state, reason FROM instance_transitions WHERE instance_id = %s ORDER BY version", instance_id
        )

    async def evidence(self, instance_id: str) -> Any:
        """Of the newest step."""
        rows = await self.rows(
            "SELECT evidence FROM instance_transitions WHERE instance_id = %s ORDER BY version DESC LIMIT 1",
            instance_id,
        )
        return rows[0][0]

    async def until_state(self, instance_id: str, *states: str) -> None:
        async def there() -> bool:
            return await self.state(instance_id) in states

        await self.until(there, f"{instance_id} {' or '.join(states)}")

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            found = condition()
            if await found if asyncio.iscoroutine(found) else found:
                return
            assert time.monotonic() < deadline, f"not in time: {what}"
            await asyncio.sleep(0.02)

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"fleetpulse_control_{name}", labels) or 0.0

    def beat(self, instance_id: str, sequence: int = 1, ago: float = 0.0, **fields: Any) -> None:
        """A heartbeat that came so long ago."""
        engine = Engine("ready", step_count=sequence, requests_running=0, requests_waiting=0)
        given = {
            "engine": engine,
            "status": "ready",
            "boot_id": "b",
            "agent_version": "1",
            "interval_seconds": 1.0,
        } | fields
        heartbeat = Heartbeat(
            worker_id=instance_id,
            instance_id=instance_id,
            sequence=sequence,
            sent_unix_nano=0,
            **given,
        )
        self.view.observe(heartbeat, time.monotonic() - ago)


@pytest.fixture(scope="session")
def jobs_database_url(postgres_server: EmbeddedPostgres, template_database: str) -> str:
    """One database for all tests here: making one takes half a second."""
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE control_jobs TEMPLATE {template_database}")
    return postgres_server.url("control_jobs")


@pytest.fixture
def database_settings(jobs_database_url: str) -> DatabaseSettings:
    """Settings of that database."""
    return DatabaseSettings(url=SecretStr(jobs_database_url))


@pytest.fixture
async def sql(jobs_database_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection of the test's own; afterwards the database is empty."""
    async with await psycopg.AsyncConnection.connect(jobs_database_url, autocommit=True) as connection:
        yield connection
        # What was under way when the test ended has ended before all is cleared.
        await connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        await connection.execute(CLEAR)


@pytest.fixture
async def make_fleet(
    database_settings: DatabaseSettings, sql: psycopg.AsyncConnection[Any]
) -> AsyncIterator[Callable[..., Any]]:
    """A fleet with given settings; each further one has a control process of its own on the same database."""
    row = await (
        await sql.execute("INSERT INTO organizations (slug, name) VALUES ('acme', 'Acme') RETURNING organization_id")
    ).fetchone()
    assert row is not None
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        reader = StreamReader(StreamSettings(), [HEARTBEATS.name], "test")
        reader.connected = True

        async def start(**settings: Any) -> Fleet:
            database = await stack.enter_async_context(Database(ControlSettings(), database_settings))
            database.accept()
            return Fleet(database, sql, row[0], session, reader, JobSettings(**{**QUICK, **settings}))

        yield start


@pytest.fixture
async def fleet(make_fleet: Callable[..., Any]) -> Fleet:
    found: Fleet = await make_fleet()
    return found


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    """A worker that answers on loopback."""
    worker = Worker()
    async with serving(worker.application(), "127.0.0.1", 0) as port:
        worker.url = f"http://127.0.0.1:{port}"
        yield worker


@pytest.fixture
def provider_error() -> Callable[..., ProviderError]:
    return lambda retryable=True: ProviderError("no capacity", retryable=retryable)
