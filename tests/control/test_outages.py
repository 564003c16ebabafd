import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from control.database import Database, UnavailableError
from control.directory import PROBE_SECONDS, Directory, keep
from control.probe import TIMEOUT_SECONDS
from fleetpulse.database import prepare
from fleetpulse.local.ports import free_port
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.settings import ControlSettings, DatabaseSettings
from fleetpulse.stream.fleet_view import FleetView

WAIT_SECONDS = 20.0
_OURS = "SELECT FROM pg_stat_activity WHERE application_name = 'fleetpulse-control' AND"
WAITING = f"{_OURS} wait_event_type = 'Lock'"
SLEEPING = f"{_OURS} wait_event = 'PgSleep'"


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A database server to stop, kill and freeze; not started."""
    folder = Path(tempfile.mkdtemp(prefix="fleetpulse-test-"))
    server = EmbeddedPostgres(folder / "postgres", free_port(), {"fsync": "off"})
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def is_ready(status: int, body: Any) -> bool:
    return "database" not in body.get("missing", {})


def is_unready(status: int, body: Any) -> bool:
    return status == 503 and "database" in body["missing"]


async def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def answers(service: Any) -> Any:
    return await service.until("/system/activity", lambda status, _: status == 200)


async def test_without_the_database_control_serves_and_says_so_and_prepares_it_when_it_comes(
    server: EmbeddedPostgres, running: Any
) -> None:
    server.start()
    settings = DatabaseSettings(url=server.url(), connect_timeout_seconds=2)
    server.stop()
    async with running(settings) as service:
        await service.until("/readyz", is_unready)
        assert (await service.get("/healthz"))[0] == 200
        status, problem, headers = await service.get("/gpu/activity")
        assert (status, headers["Retry-After"]) == (503, "2")
        assert "database" in problem["detail"]
        assert "password" not in str(problem).lower()
        assert (await service.get("/workers"))[0] == 200
        await asyncio.to_thread(server.start)
        await service.until("/readyz", is_ready)
        assert (await answers(service))["rows"] == []


@pytest.mark.parametrize("outage", ["stop", "kill", "freeze"])
async def test_control_outlives_an_outage_of_the_database(server: EmbeddedPostgres, running: Any, outage: str) -> None:
    server.start()
    async with running(DatabaseSettings(url=server.url(), connect_timeout_seconds=2)) as service:
        await answers(service)
        await asyncio.to_thread(getattr(server, outage))
        # Also the question that is under way when the database goes has an answer soon.
        await service.until("/system/activity", lambda status, _: status == 503, seconds=8)
        await service.until("/readyz", is_unready)
        await asyncio.to_thread(server.thaw if outage == "freeze" else server.start)
        await service.until("/readyz", is_ready)
        await answers(service)


async def test_the_database_may_be_restarted_between_two_queries(server: EmbeddedPostgres, running: Any) -> None:
    server.start()
    async with running(DatabaseSettings(url=server.url())) as service:
        await answers(service)
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fleetpulse-control'"
            )
        assert (await service.get("/system/activity"))[0] == 200


async def test_a_connection_that_ends_under_a_reading_query_is_made_anew(server: EmbeddedPostgres) -> None:
    server.start()
    settings = DatabaseSettings(url=server.url())
    async with Database(ControlSettings(database_connections=1), settings) as database:
        database.accept()
        [[backend]] = await database.rows("SELECT pg_backend_pid()")
        os.kill(backend, signal.SIGSTOP)
        try:
            with psycopg.connect(server.url(), autocommit=True) as connection:
                connection.execute("SELECT pg_terminate_backend(%s)", (backend,))
            query = asyncio.create_task(database.rows("SELECT pg_backend_pid()"))
            # Asked of the old backend, which is told to end before it reads the question.
            assert not (await asyncio.wait({query}, timeout=0.3))[0]
        finally:
            os.kill(backend, signal.SIGCONT)
        assert await query != [(backend,)]


async def test_a_query_whose_database_goes_away_says_so(server: EmbeddedPostgres) -> None:
    server.start()
    async with Database(ControlSettings(), DatabaseSettings(url=server.url())) as database:
        database.accept()
        with psycopg.connect(server.url(), autocommit=True) as other:
            query = asyncio.create_task(database.rows("SELECT pg_sleep(8)"))
            await until(lambda: other.execute(SLEEPING).fetchone() is not None, WAIT_SECONDS)
            server.kill()
        with pytest.raises(UnavailableError, match="connection to the database failed"):
            await query


async def test_a_database_that_freezes_while_workers_are_read_from_it_is_away(server: EmbeddedPostgres) -> None:
    server.start()
    settings = DatabaseSettings(url=server.url())
    await prepare(settings)
    async with Database(ControlSettings(), settings) as database, asyncio.TaskGroup() as tasks:
        with psycopg.connect(server.url()) as lock, psycopg.connect(server.url(), autocommit=True) as other:
            lock.execute("LOCK TABLE workers IN ACCESS EXCLUSIVE MODE")
            keeping = tasks.create_task(keep(settings, database, Directory(), FleetView()))
            await until(lambda: other.execute(WAITING).fetchone() is not None, WAIT_SECONDS)
            assert database.lacking is None
            server.freeze()
            try:
                # Sooner than a query may take.
                await until(lambda: database.lacking is not None, PROBE_SECONDS + TIMEOUT_SECONDS + 3)
            finally:
                server.thaw()
        keeping.cancel()


async def test_without_a_broker_control_serves_and_says_so(database_settings: DatabaseSettings, running: Any) -> None:
    async with running(database_settings) as service:
        body = await service.until("/readyz", lambda _, body: set(body.get("missing", {})) == {"stream"})
        assert body["status"] == "unready"
        await answers(service)
        fleet = (await service.get("/workers"))[1]
        assert fleet["stream"] == {"connected": False, "joined_for_seconds": None, "lag_records": None}
        assert fleet["mass_silence"]["reason"] == "not_following"


async def test_a_busy_pool_is_no_outage(database_settings: DatabaseSettings, running: Any) -> None:
    url = database_settings.url.get_secret_value()
    async with running(database_settings, database_connections=1, query_timeout_seconds=4) as service:
        await answers(service)
        async with await psycopg.AsyncConnection.connect(url) as lock:
            await lock.execute("LOCK TABLE gpu_samples IN ACCESS EXCLUSIVE MODE")
            blocked = [asyncio.create_task(service.get("/gpu/activity")) for _ in range(3)]
            done, _ = await asyncio.wait(blocked, timeout=3)
            assert not done
            assert is_ready(*(await service.get("/readyz"))[:2])
            await lock.rollback()
        assert [(await one)[0] for one in blocked] == [200, 200, 200]
