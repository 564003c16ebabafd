"""The mock cloud as a process, and machines asked for."""

import asyncio
import getpass
import os
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import asyncssh
import pytest

from control.providers.interface import MachineRequest
from fleetpulse.local.ports import LOOPBACK, free_port, is_free
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
    except urllib.error.HTTPError as error:
        # The error holds the connection.
        error.close()
        return False
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


class SshServer:
    """An SSH server on the loopback address whose only user is ours, with a home folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.port = free_port()
        self.user = getpass.getuser()
        self.key_file, self.host_key_file = folder / "key", folder / "host-key"
        self.known_hosts = folder / "known-hosts"
        self._authorized = folder / "authorized"
        self._config = folder / "sshd_config"
        self.home.mkdir(parents=True)
        for path in (self.key_file, self.host_key_file):
            key = asyncssh.generate_private_key("ssh-ed25519")
            path.write_bytes(key.export_private_key())
            path.chmod(0o600)
            path.with_suffix(".pub").write_bytes(key.export_public_key())
        self._authorized.write_bytes(self.key_file.with_suffix(".pub").read_bytes())
        host_key = self.host_key_file.with_suffix(".pub").read_text()
        self.known_hosts.write_text(f"[{LOOPBACK}]:{self.port} {host_key}")

    def open_ssh(self, program: str) -> Child:
        """OpenSSH's server; not started."""
        self._config.write_text(
            f"Port {self.port}\nListenAddress {LOOPBACK}\nHostKey {self.host_key_file}\nPidFile none\n"
            f"AuthorizedKeysFile {self._authorized}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            f"MaxStartups 100\nSetEnv HOME={self.home}\n"
        )
        return Child("sshd", [program, "-D", "-e", "-f", str(self._config)], self._config.with_suffix(".log"))

    async def asyncssh(self) -> asyncssh.SSHAcceptor:
        """asyncssh's server, which runs real commands all the same."""
        return await asyncssh.listen(
            LOOPBACK,
            self.port,
            server_host_keys=[str(self.host_key_file)],
            authorized_client_keys=str(self._authorized),
            process_factory=self._run,
            encoding=None,
        )

    async def _run(self, process: "asyncssh.SSHServerProcess[bytes]") -> None:
        running = await asyncio.create_subprocess_exec(
            *("sh", "-c", process.command or ""),
            env={"HOME": str(self.home), "PATH": os.environ["PATH"]},
            cwd=self.home,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        told, complained = await running.communicate(await process.stdin.read())
        process.stdout.write(told)
        process.stderr.write(complained)
        process.exit(running.returncode or 0)


def open_ssh_program() -> str | None:
    """OpenSSH's server, where it is installed."""
    return shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


@contextmanager
def privilege_separation() -> Iterator[None]:
    """Root's sshd wants an empty folder, which a machine that never ran it lacks."""
    folder = Path("/run/sshd")
    if os.getuid() != 0 or folder.is_dir():
        yield
        return
    folder.mkdir(mode=0o755)
    try:
        yield
    finally:
        folder.rmdir()


@pytest.fixture
async def ssh_server(tmp_path: Path) -> AsyncIterator[SshServer]:
    """OpenSSH's server where it is installed, else asyncssh's."""
    server = SshServer(tmp_path / "ssh")
    program = open_ssh_program()
    if program is None:
        acceptor = await server.asyncssh()
        yield server
        acceptor.close()
        await acceptor.wait_closed()
        return
    child = server.open_ssh(program)
    with privilege_separation():
        child.start()
        try:
            await asyncio.to_thread(child.wait_until, lambda: not is_free(server.port), WAIT_SECONDS)
            yield server
        finally:
            child.kill()


def pytest_report_header() -> str:
    return f"ssh: {open_ssh_program() or 'asyncssh, for OpenSSH is not installed'}"
