"""Real databases for tests, and the lanes: parts of the suite that need something this machine may not have.

A test in a lane carries its marker. Where the lane cannot run, the test is skipped with the reason, or fails when
FLEETPULSE_TEST_REQUIRE (comma-separated lanes) names it.
"""

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from fleetpulse.database import prepare
from fleetpulse.local import kafka_jars, pglite
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.local.processes import StartError
from fleetpulse.settings import DatabaseSettings

ROOT = Path(__file__).parents[1]
PGLITE_SOURCE = ROOT / "tests" / "database" / "pglite"
PGLITE_FOLDER = ROOT / ".test" / "pglite"
NATIVE_URL = os.environ.get("FLEETPULSE_TEST_DATABASE_URL")
REQUIRED = {name.strip() for name in os.environ.get("FLEETPULSE_TEST_REQUIRE", "").split(",") if name.strip()}

# Programs that come in wheels.
os.environ["PATH"] += os.pathsep + str(Path(sys.executable).parent)

_names = itertools.count()


def _missing_timescale() -> str | None:
    return None if NATIVE_URL else pglite.missing_program()


def _missing_promtool() -> str | None:
    return _missing_program("promtool", "prometheus")


def _missing_prometheus() -> str | None:
    return (
        _missing_program("prometheus", "prometheus")
        or _missing_program("promtool", "prometheus")
        or _missing_program("prometheus-alertmanager", "prometheus-alertmanager")
        or _missing_program("amtool", "prometheus-alertmanager")
    )


def _missing_chromium() -> str | None:
    return _missing_program("chromium", "chromium")


def _missing_compose() -> str | None:
    if shutil.which("docker-compose"):
        return None
    has_plugin = (
        shutil.which("docker")
        and not subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    )
    return None if has_plugin else "there is neither docker-compose nor docker compose"


def _missing_helm() -> str | None:
    return None if shutil.which("helm") else "helm is not on the PATH"


def _missing_systemd() -> str | None:
    return _missing_program("systemd-analyze", "systemd")


def _missing_program(program: str, package: str) -> str | None:
    return None if shutil.which(program) else f"{program} is not installed: install Debian's {package} package"


LANES: dict[str, Callable[[], str | None]] = {
    "kafka": kafka_jars.missing_program,
    "timescale": _missing_timescale,
    "promtool": _missing_promtool,
    "prometheus": _missing_prometheus,
    "chromium": _missing_chromium,
    "compose": _missing_compose,
    "helm": _missing_helm,
    "systemd": _missing_systemd,
}


@cache
def missing(lane: str) -> str | None:
    """What this machine lacks for a lane, in words; None when nothing is known to be missing."""
    return LANES[lane]()


def pytest_configure() -> None:
    if unknown := REQUIRED - set(LANES):
        raise pytest.UsageError(
            f"FLEETPULSE_TEST_REQUIRE: no lane {', '.join(sorted(unknown))}; there are {', '.join(LANES)}"
        )


def pytest_report_header() -> list[str]:
    lanes = [f"{lane} ({reason})" if (reason := missing(lane)) else lane for lane in LANES]
    database = "a native server" if NATIVE_URL else "WASM"
    return [
        f"lanes: local, {', '.join(lanes)}; timescale is {database}; required: {', '.join(sorted(REQUIRED)) or '-'}"
    ]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for lane in LANES:
        if item.get_closest_marker(lane) is not None and (reason := missing(lane)):
            _cannot_run(lane, reason)


def _cannot_run(lane: str, reason: str) -> None:
    if lane in REQUIRED:
        pytest.fail(f"the lane {lane} is required and cannot run: {reason}", pytrace=False)
    pytest.skip(f"the lane {lane} cannot run: {reason}")


@pytest.fixture(scope="session")
def enter_lane() -> Callable[[str], None]:
    """Call with a lane for what part of a test needs: skips, or fails where it is required, if it cannot run."""

    def enter(lane: str) -> None:
        if reason := missing(lane):
            _cannot_run(lane, reason)

    return enter


@pytest.fixture(scope="session")
def require_lane() -> Callable[[str, str], None]:
    """Call with a lane and a reason when the lane turns out not to work: skips, or fails where it is required."""
    return _cannot_run


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server for this test run."""
    # Not pytest's own folder: others may not pass through it, and the server runs as another account under root.
    folder = Path(tempfile.mkdtemp(prefix="fleetpulse-test-"))
    try:
        with EmbeddedPostgres(
            folder / "postgres", parameters={"fsync": "off", "full_page_writes": "off", "max_connections": "200"}
        ) as server:
            yield server
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def template_database(postgres_server: EmbeddedPostgres) -> str:
    """Name of a migrated database to copy."""
    name = "template_fleetpulse"
    _administer(postgres_server.url(), f"CREATE DATABASE {name}")
    asyncio.run(prepare(DatabaseSettings(url=postgres_server.url(name))))
    return name


@pytest.fixture
def database_url(postgres_server: EmbeddedPostgres, template_database: str) -> Iterator[str]:
    """A migrated database of the postgres profile, for this test alone."""
    yield from _database(postgres_server.url(), template_database)


@pytest.fixture
def empty_database_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A database with nothing in it, for this test alone."""
    yield from _database(postgres_server.url(), "template0")


@pytest.fixture
def database_settings(database_url: str) -> DatabaseSettings:
    """Settings of ``database_url``."""
    return DatabaseSettings(url=database_url)


@pytest.fixture
def unused_port() -> int:
    """A port on the loopback address that nobody listens on, and that nobody gets meanwhile."""
    return 1


@pytest.fixture(scope="session")
def pglite_folder(require_lane: Callable[[str, str], None]) -> Path:
    """Where pglite is installed."""
    try:
        pglite.install(PGLITE_SOURCE, PGLITE_FOLDER)
    except StartError as error:
        require_lane("timescale", str(error))
    return PGLITE_FOLDER


@pytest.fixture(scope="session")
def pglite_template(pglite_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dump of a migrated database of the timescale profile."""
    template = tmp_path_factory.mktemp("pglite") / "template.tar"
    with pglite.Pglite(pglite_folder, template, template.with_suffix(".log")) as server:
        asyncio.run(pglite.prepare_pglite(DatabaseSettings(url=server.url)))
        server.save()
    return template


@pytest.fixture
def empty_timescale_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database on a server with TimescaleDB, for this test alone."""
    if NATIVE_URL:
        yield from _database(NATIVE_URL, "template0")
        return
    folder = request.getfixturevalue("pglite_folder")
    with pglite.Pglite(folder, tmp_path / "none.tar", tmp_path / "pglite.log") as server:
        yield server.url


@pytest.fixture
def timescale_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated database of the timescale profile, for this test alone; its background workers stand still."""
    if NATIVE_URL:
        for url in _database(NATIVE_URL, "template0"):
            asyncio.run(prepare(DatabaseSettings(url=url)))
            _administer(url, "SELECT _timescaledb_functions.stop_background_workers()")
            yield url
        return
    folder, template = request.getfixturevalue("pglite_folder"), request.getfixturevalue("pglite_template")
    with pglite.Pglite(folder, template, tmp_path / "pglite.log") as server:
        yield server.url


@pytest.fixture(params=["postgres", pytest.param("timescale", marks=pytest.mark.timescale)])
def any_database_url(request: pytest.FixtureRequest) -> str:
    """A migrated database of each profile in turn. The WASM one takes one connection at a time and no COPY."""
    url: str = request.getfixturevalue("database_url" if request.param == "postgres" else "timescale_url")
    return url


def _database(server_url: str, template: str) -> Iterator[str]:
    name = f"fleetpulse_test_{os.getpid()}_{next(_names)}"
    _administer(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield _with_database(server_url, name)
    finally:
        _administer(server_url, f"DROP DATABASE {name} WITH (FORCE)")


def _with_database(url: str, name: str) -> str:
    if "://" in url:
        start, _, parameters = url.partition("?")
        return f"{start.rsplit('/', 1)[0]}/{name}" + (f"?{parameters}" if parameters else "")
    return make_conninfo(url, dbname=name)


def _administer(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())
