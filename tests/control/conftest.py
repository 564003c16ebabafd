import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import psycopg
import pytest
from prometheus_client import CollectorRegistry
from psycopg.sql import SQL, Identifier
from pydantic import SecretStr

from control.access.admission import Admission
from control.access.attempts import Attempts
from control.api.application import application
from control.api.call import Parts
from control.api.event_log import EventLog
from control.database import Database
from control.directory import Directory
from control.main import run
from control.metrics import HeartbeatMetrics, StateCollector
from fleetpulse.database.relations import ROLLED_UP, ROLLUP_SUFFIXES
from fleetpulse.http import serving
from fleetpulse.local.ports import free_port
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.settings import ControlSettings, DatabaseSettings, JobSettings, StreamSettings
from fleetpulse.stream import dictionary
from fleetpulse.stream.consumer import StreamReader
from fleetpulse.stream.fleet_view import FleetView
from fleetpulse.stream.topics import HEARTBEATS

WAIT_SECONDS = 30.0
ADMIN_KEY = "the admin key of the tests"


CLEAR = """
DELETE FROM idempotency_keys; DELETE FROM sessions; DELETE FROM api_keys; DELETE FROM users; DELETE FROM action_log;
DELETE FROM lifecycle_outbox; DELETE FROM volumes; DELETE FROM instances; DELETE FROM deployments;
DELETE FROM instance_types; DELETE FROM zones; DELETE FROM providers; DELETE FROM offerings; DELETE FROM models;
DELETE FROM organizations
"""


class Api:
    """The endpoints on a port, without the loops that feed them."""

    def __init__(self, url: str, session: aiohttp.ClientSession, parts: Parts) -> None:
        self.url = url
        self.session = session
        self.parts = parts
        self.admin = {"Authorization": f"Bearer {ADMIN_KEY}"}

    async def get(self, path: str, status: int = 200, **query: Any) -> Any:
        """The JSON body; the status must be the expected one."""
        return await self.ask("GET", path, status, params=query)

    async def ask(self, method: str, path: str, status: int = 200, key: str | None = None, **options: Any) -> Any:
        """The JSON body, as the admin or with a key; the status must be the expected one."""
        credential = {"Authorization": f"Bearer {key}"} if key else self.admin
        headers = credential | options.pop("headers", {})
        async with self.session.request(method, self.url + path, headers=headers, **options) as answer:
            body = await answer.json(content_type=None) if answer.status != 204 else None
            assert answer.status == status, body
            return body


Serve = Callable[..., Awaitable[Api]]


@pytest.fixture(scope="session")
def shared_database_url(postgres_server: EmbeddedPostgres, template_database: str) -> str:
    """One database for all tests that only put rows into it: making one takes half a second."""
    name = "control"
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(
            SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(template_database))
        )
    return postgres_server.url(name)


@pytest.fixture
async def sql(shared_database_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection to the database that the endpoints read, with nothing in it."""
    async with await psycopg.AsyncConnection.connect(shared_database_url, autocommit=True) as connection:
        yield connection
        for table in dictionary.TABLES:
            await connection.execute(SQL("DELETE FROM {}").format(Identifier(table.name)))
        for name, suffix in itertools.product(ROLLED_UP, ROLLUP_SUFFIXES):
            await connection.execute(SQL("DELETE FROM {}").format(Identifier(f"{name}{suffix}")))
        await connection.execute("DELETE FROM gpus; DELETE FROM engines; DELETE FROM workers")
        await connection.execute(CLEAR)


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start the endpoints with given settings, and a database or none."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def start(database_url: str | None = None, **settings: Any) -> Api:
            control = ControlSettings(port=0, **{"admin_key": ADMIN_KEY, **settings})
            nowhere = "127.0.0.1:1"
            url = database_url or f"postgresql://{nowhere}/none"
            database_settings = DatabaseSettings(url=SecretStr(url))
            database = await stack.enter_async_context(Database(control, database_settings))
            if database_url is not None:
                database.accept()
            stream = StreamSettings(bootstrap=nowhere)
            reader = await stack.enter_async_context(StreamReader(stream, [HEARTBEATS.name], "test"))
            parts = Parts(
                settings=control,
                retention=database_settings,
                database=database,
                directory=Directory(),
                view=FleetView(),
                reader=reader,
                admission=Admission(control, database),
                attempts=Attempts(control.login_attempts, control.login_window_seconds),
                events=EventLog(control.events_kept),
            )
            registry = CollectorRegistry()
            HeartbeatMetrics(registry)
            registry.register(StateCollector(parts.view, reader, database))
            app = application(parts, registry, dict)
            port = await stack.enter_async_context(serving(app, "127.0.0.1", 0))
            return Api(f"http://127.0.0.1:{port}", session, parts)

        yield start


@pytest.fixture
async def api(serve: Serve, sql: object, shared_database_url: str) -> Api:
    """The endpoints on the database of ``sql``."""
    return await serve(shared_database_url)


class Service:
    """The whole service while it runs."""

    def __init__(self, port: int, session: aiohttp.ClientSession) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._session = session
        self.admin = {"Authorization": f"Bearer {ADMIN_KEY}"}

    async def get(self, path: str) -> tuple[int, Any, Any]:
        """Status, body and headers."""
        async with self._session.get(self.url + path, headers=self.admin) as answer:
            return answer.status, await answer.json(content_type=None), answer.headers

    async def until(self, path: str, condition: Callable[[int, Any], bool], seconds: float = WAIT_SECONDS) -> Any:
        """Ask until the answer fits, and return its body."""
        answer: Any = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        status, answer, _ = await self.get(path)
                        if condition(status, answer):
                            return answer
                    except aiohttp.ClientConnectionError as error:
                        answer = error
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"{path} did not become as expected within {seconds} s; last: {answer!r}")


@pytest.fixture
def running() -> Callable[..., Any]:
    """Run the service while a block runs."""

    @asynccontextmanager
    async def start(
        database: DatabaseSettings, bootstrap: str | None = None, stale_after_seconds: float = 3.3, **settings: Any
    ) -> AsyncIterator[Service]:
        port, stop = free_port(), asyncio.Event()
        stream = StreamSettings(
            bootstrap=bootstrap or "127.0.0.1:1",
            request_timeout_seconds=3.0,
            stale_after_seconds=stale_after_seconds,
        )
        own = ControlSettings(port=port, **{"admin_key": ADMIN_KEY, **settings})
        control = asyncio.create_task(run(own, JobSettings(), stream, database, stop))
        try:
            async with aiohttp.ClientSession() as session:
                yield Service(port, session)
        finally:
            stop.set()
            async with asyncio.timeout(WAIT_SECONDS):
                await control

    return start
