"""TimescaleDB compiled to WASM, for tests on machines without a TimescaleDB server.

Not quite PostgreSQL: one connection at a time, no COPY … FROM STDIN, no background workers.
"""

import fcntl
import os
import shutil
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from fleetpulse.database.connect import connect
from fleetpulse.database.migrate import dbmate_url, run_dbmate, sql_folder
from fleetpulse.database.prepare import arrange
from fleetpulse.database.profile import Profile, detect, ensure_extension
from fleetpulse.local.ports import LOOPBACK, free_port
from fleetpulse.local.processes import Child, StartError
from fleetpulse.settings import DatabaseSettings, ServiceSettings, load

_START_TIMEOUT_SECONDS: Final = 60.0
_INSTALL_TIMEOUT_SECONDS: Final = 300.0
_OLDEST_NODE: Final = 20
_PACKAGE_FILES: Final = ("package.json", "package-lock.json", "server.mjs")


class Pglite:
    """One server in memory, from the folder that install() made. ``template`` is the dump it starts from, where that
    exists, and the one that save() writes."""

    def __init__(self, folder: Path, template: Path, log_file: Path) -> None:
        self.port = free_port()
        self._template = template
        self._child = Child("pglite", ["node", str(folder / "server.mjs"), str(self.port), str(template)], log_file)

    @property
    def url(self) -> str:
        """Connection URL of its one database."""
        return f"postgresql://postgres:postgres@{LOOPBACK}:{self.port}/postgres?sslmode=disable"

    def __enter__(self) -> Self:
        self._child.log_file.unlink(missing_ok=True)
        self._child.start()
        try:
            self._child.wait_until(
                lambda: "listening" in self._child.log_file.read_text(errors="replace"), _START_TIMEOUT_SECONDS
            )
        except BaseException:
            self._child.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.kill()

    def save(self) -> None:
        """Write the dump that later servers start from; nobody may be connected. Raises StartError."""
        self._child.signal(signal.SIGUSR2)
        self._child.wait_until(self._template.exists, _START_TIMEOUT_SECONDS)


def missing_program() -> str | None:
    """Why pglite cannot run here, with what to do about it; None when it can."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return f"node and npm are not installed: install Node.js {_OLDEST_NODE} or later"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < _OLDEST_NODE:
        return f"Node.js {version} is too old: install {_OLDEST_NODE} or later"
    return None


def install(source: Path, folder: Path) -> None:
    """Install the packages that ``source``'s lock file pins into ``folder``; nothing to do the second time.

    Raises StartError with npm's reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = (source / "package-lock.json").read_bytes()
        installed = folder / "installed.json"
        fresh = installed.exists() and installed.read_bytes() == wanted
        for name in _PACKAGE_FILES:
            shutil.copyfile(source / name, folder / name)
        if not fresh:
            _npm_ci(folder)
            installed.write_bytes(wanted)


def _npm_ci(folder: Path) -> None:
    try:
        result = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund", "--loglevel", "error"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT_SECONDS,
            env=os.environ | {"NO_UPDATE_NOTIFIER": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StartError(
            f"npm ci took longer than {_INSTALL_TIMEOUT_SECONDS:g} s: is the npm registry there?"
        ) from None
    if result.returncode != 0:
        raise StartError(f"npm ci failed: {' '.join(result.stderr.split())[:400]}")


async def prepare_pglite(settings: DatabaseSettings) -> Profile:
    """Like database.prepare(), but one connection after the other: no lock is held while dbmate runs."""
    await ensure_extension(settings)
    async with await connect(settings) as connection:
        profile = await detect(connection, settings)
        url = dbmate_url(connection, settings)
    await run_dbmate(url, sql_folder(load(ServiceSettings)), profile)
    async with await connect(settings) as connection:
        await arrange(connection, profile, settings, datetime.now(UTC))
    return profile
