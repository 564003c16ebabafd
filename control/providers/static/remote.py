"""One machine over SSH: each action is one run of ``worker.sh``, with arguments and never with text put together."""

import asyncio
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

import asyncssh

from control.providers.interface import ProviderError
from control.providers.static.machines import StaticMachine

SCRIPT: Final = Path(__file__).with_name("worker.sh").read_text()
State = Literal["installing", "failed", "running", "stopped"]
# Wrong until somebody changes something: the same call will not succeed.
_FOR_GOOD: Final = (
    asyncssh.HostKeyNotVerifiable,
    asyncssh.PermissionDenied,
    asyncssh.KeyImportError,
    asyncssh.KeyEncryptionError,
)


@dataclass(frozen=True, slots=True)
class Status:
    """A machine as it is. ``version`` is that of what was started last, ``failure`` why the agent's installation
    failed."""

    claim: str | None
    state: State
    version: str
    failure: str


class Remote:
    """A machine while a connection to it is open. Every method raises ProviderError."""

    def __init__(
        self, machine: StaticMachine, connection: asyncssh.SSHClientConnection, timeout_seconds: float
    ) -> None:
        self._machine = machine
        self._connection = connection
        self._timeout_seconds = timeout_seconds

    async def status(self) -> Status:
        """What is on the machine."""
        claim, state, version, failure = [*(await self._run("status")).split("\n", 3), "", "", "", ""][:4]
        return Status(claim or None, cast("State", state), version, failure.strip())

    async def claim(self, instance_id: str) -> str:
        """Take the machine unless it is taken; the instance that has it."""
        return (await self._run("claim", instance_id)).strip()

    async def release(self, instance_id: str) -> None:
        """Stop everything and give the machine back; nothing happens when another instance has it."""
        await self._run("release", instance_id)

    async def put(self, name: str, content: bytes) -> None:
        """A file in the machine's folder that only its user can read."""
        await self._run("put", name, content=content)

    async def start(self, version: str, with_engine: bool, installation: tuple[str, ...]) -> None:
        """Begin to install and to start what was put there; it goes on without us."""
        await self._run("start", version, "engine" if with_engine else "", *installation)

    async def stop(self) -> None:
        """End agent and engine."""
        await self._run("stop")

    async def _run(self, action: str, *arguments: str, content: bytes = b"") -> str:
        command = shlex.join(["sh", "-c", SCRIPT, "worker", action, self._machine.folder, *arguments])
        try:
            async with asyncio.timeout(self._timeout_seconds):
                # Without content the end of standard input must come too, or a program that reads it waits for ever.
                given = {"input": content} if content else {"stdin": asyncssh.DEVNULL}
                done = await self._connection.run(command, encoding=None, **given)
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise _failed(self._machine, error) from error
        told, complained = (part if isinstance(part, bytes) else b"" for part in (done.stdout, done.stderr))
        if done.exit_status != 0:
            why = complained.decode(errors="replace").strip().splitlines()
            raise ProviderError(
                f"machine {self._machine.name}: {action} ended with status {done.exit_status}: "
                f"{why[-1] if why else 'it says nothing'}",
                retryable=True,
            )
        return told.decode(errors="replace")


@asynccontextmanager
async def connected(machine: StaticMachine, timeout_seconds: float) -> AsyncIterator[Remote]:
    """The machine, if its host key is known. Raises ProviderError."""
    keys = {} if machine.key_file is None else {"client_keys": [_path(machine.key_file)], "agent_path": None}
    try:
        async with asyncio.timeout(timeout_seconds):
            connection = await asyncssh.connect(
                machine.host,
                machine.port,
                username=machine.user,
                known_hosts=_path(machine.known_hosts),
                config=None,
                **keys,
            )
    except (asyncssh.Error, OSError, TimeoutError, ValueError) as error:
        raise _failed(machine, error) from error
    try:
        yield Remote(machine, connection, timeout_seconds)
    finally:
        connection.abort()


def _path(text: str) -> str:
    return str(Path(text).expanduser())


def _failed(machine: StaticMachine, error: Exception) -> ProviderError:
    # A file of ours that is not there is no trouble of the machine's.
    for_good = isinstance(error, (*_FOR_GOOD, FileNotFoundError, PermissionError, ValueError))
    where = f"machine {machine.name} ({machine.user}@{machine.host}:{machine.port})"
    return ProviderError(f"{where}: {error or type(error).__name__}", retryable=not for_good)
