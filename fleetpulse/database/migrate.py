"""Migrations: dbmate applies ``sql/common`` and the profile's folder, one process at a time."""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

from psycopg.conninfo import conninfo_to_dict

from fleetpulse.database.connect import Connection, DatabaseError
from fleetpulse.database.profile import Profile
from fleetpulse.settings import DatabaseSettings, ServiceSettings
from fleetpulse.telemetry import logger

_log = logger(__name__)

# Advisory locks are numbers; these eight bytes are "fleetpul".
_LOCK: Final = int.from_bytes(b"fleetpul")
_LOCK_POLL_SECONDS: Final = 0.05
_SSL_PARAMETERS: Final = ("sslmode", "sslrootcert", "sslcert", "sslkey")


def sql_folder(settings: ServiceSettings) -> Path:
    """The folder of the migrations: the one set, else the one beside this package, in a checkout and in a wheel.

    Raises DatabaseError when there is none.
    """
    folder = settings.sql_dir or Path(__file__).parents[2] / "sql"
    if not (folder / "common").is_dir():
        raise DatabaseError(f"no migrations in {folder}: set FLEETPULSE_SQL_DIR or reinstall fleetpulse")
    return folder.resolve()


@asynccontextmanager
async def migration_lock(connection: Connection, timeout_seconds: float) -> AsyncIterator[None]:
    """Keep other processes from changing the database's shape meanwhile. Raises DatabaseError after the timeout.

    Polls rather than blocks: a blocked statement would hold a snapshot, which others' migrations may wait for.
    """
    deadline = time.monotonic() + timeout_seconds
    while not await _take_lock(connection):
        if time.monotonic() > deadline:
            raise DatabaseError(
                f"another process has been migrating the database for {timeout_seconds:g} s: look for application"
                " fleetpulse-prepare in pg_stat_activity"
            )
        await asyncio.sleep(_LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        if not connection.closed:
            await connection.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))


async def _take_lock(connection: Connection) -> bool:
    row = await (await connection.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,))).fetchone()
    return row is not None and bool(row[0])


async def run_dbmate(url: str, sql: Path, profile: Profile, command: str = "migrate") -> None:
    """Run a dbmate command (``migrate`` or ``rollback``) over the profile's migrations.

    ``url`` is dbmate's, from dbmate_url(). Raises DatabaseError with what dbmate said last.
    """
    program = _dbmate()
    process = await asyncio.create_subprocess_exec(
        program,
        "--no-dump-schema",
        *("--migrations-dir", "common", "--migrations-dir", profile),
        command,
        # The URL holds a password: the environment, unlike the arguments, is not shown to other users.
        env=os.environ | {"DATABASE_URL": url},
        cwd=sql,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    lines = output.decode(errors="replace").strip().splitlines()
    for line in lines:
        if line.startswith("Applied:"):
            _log.info("migration applied", extra={"migration": line.removeprefix("Applied: ")})
    if process.returncode != 0:
        last = lines[-1] if lines else f"status {process.returncode}"
        applying = next((line for line in reversed(lines) if line.startswith("Applying:")), None)
        during = f" in {applying.removeprefix('Applying: ')}" if applying else ""
        raise DatabaseError(f"migration failed{during}: {last.removeprefix('Error: ')} (migrations in {sql})")


def dbmate_url(connection: Connection, settings: DatabaseSettings) -> str:
    """The URL of the server that ``connection`` reached, in dbmate's words.

    dbmate's driver asks for TLS unless told otherwise, where libpq takes what it gets: say what libpq got.
    """
    info = connection.info
    given = conninfo_to_dict(settings.url.get_secret_value())
    options = {name: str(given[name]) for name in _SSL_PARAMETERS if given.get(name)}
    if not connection.pgconn.ssl_in_use:
        options = {"sslmode": "disable"}
    elif options.get("sslmode") not in {"require", "verify-ca", "verify-full"}:
        options["sslmode"] = "require"
    place = f"{info.host}:{info.port}"
    if info.host.startswith("/"):
        options["socket"], place = info.host, ""
    elif ":" in info.host:
        place = f"[{info.host}]:{info.port}"
    credentials = f"{quote(info.user, safe='')}:{quote(info.password, safe='')}"
    return f"postgres://{credentials}@{place}/{quote(info.dbname, safe='')}?{urlencode(options)}"


def _dbmate() -> str:
    """dbmate beside the interpreter, as pip puts it, else on the PATH. Raises DatabaseError."""
    beside = Path(sys.executable).with_name("dbmate")
    program = str(beside) if beside.exists() else shutil.which("dbmate")
    if program is None:
        raise DatabaseError("dbmate is not installed: pip install 'fleetpulse[collector]'")
    return program
