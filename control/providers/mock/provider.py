"""The provider ``mock``: a client of the mock cloud."""

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

import aiohttp
import msgspec

from control.providers.interface import (
    Address,
    Catalogue,
    Machine,
    MachineRequest,
    NoSuchMachineError,
    ProviderError,
    Volume,
)
from control.providers.mock.messages import MachineView, NewMachine, Refusal, Runtime, VolumeView
from fleetpulse.settings import MockProviderSettings

Answer = TypeVar("Answer")
_LOOPBACK: Final = "127.0.0.1"


class MockProvider:
    """Each method is one request."""

    name = "mock"

    def __init__(self, settings: MockProviderSettings) -> None:
        self._settings = settings
        self._url = settings.url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=self._settings.timeout_seconds)
        self._session = aiohttp.ClientSession(timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def catalogue(self) -> Catalogue:
        """What the cloud offers. Raises ProviderError."""
        return await self._ask("GET", "/catalogue", Catalogue)

    async def create(self, request: MachineRequest) -> Machine:
        """The options are fields of ``messages.Options``. Raises ProviderError."""
        wanted = NewMachine(request.instance_id, request.zone, request.instance_type, dict(request.options))
        return _machine(await self._ask("POST", "/machines", MachineView, wanted))

    async def start_runtime(self, machine: Machine, request: MachineRequest) -> None:
        """Settings that differ from those it runs with restart it. Raises ProviderError."""
        wanted = Runtime(dict(request.worker_environment), request.model)
        await self._ask("POST", f"/machines/{machine.machine_id}/runtime", MachineView, wanted)

    async def stop_runtime(self, machine: Machine) -> None:
        """Raises ProviderError."""
        await self._ask("DELETE", f"/machines/{machine.machine_id}/runtime", MachineView)

    async def address(self, machine: Machine) -> Address | None:
        """There is no SSH on the machines. Raises NoSuchMachineError, ProviderError."""
        view = await self._ask("GET", f"/machines/{machine.machine_id}", MachineView)
        if view.agent_url is None:
            return None
        return Address(_LOOPBACK, view.agent_url, view.engine_url, ssh_port=None)

    async def delete(self, machine: Machine) -> None:
        """Raises ProviderError."""
        try:
            await self._send("DELETE", f"/machines/{machine.machine_id}")
        except NoSuchMachineError:
            return

    async def inventory(self) -> Sequence[Machine]:
        """Raises ProviderError."""
        return [_machine(view) for view in await self._ask("GET", "/machines", list[MachineView])]

    async def volumes(self) -> Sequence[Volume]:
        """Raises ProviderError."""
        views = await self._ask("GET", "/volumes", list[VolumeView])
        return [
            Volume(view.volume_id, view.zone, view.name, view.size_bytes, view.machine_id, view.instance_id)
            for view in views
        ]

    async def delete_volume(self, volume: Volume) -> None:
        """Raises ProviderError."""
        try:
            await self._send("DELETE", f"/volumes/{volume.volume_id}")
        except NoSuchMachineError:
            return

    async def _ask(self, method: str, path: str, kind: type[Answer], body: object = None) -> Answer:
        answer = await self._send(method, path, body)
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.DecodeError as error:
            raise ProviderError(f"{self._url} is no mock cloud: {error}", retryable=False) from error

    async def _send(self, method: str, path: str, body: object = None) -> bytes:
        """The answer's body. Raises ProviderError; NoSuchMachineError for a 404."""
        assert self._session is not None, "a provider is used as a context manager"
        content = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(method, self._url + path, data=content) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ProviderError(
                f"the mock cloud at {self._url} does not answer: {error or type(error).__name__}", retryable=True
            ) from error
        if response.status >= 400:
            raise _error(response.status, answer)
        return answer


def _error(status: int, answer: bytes) -> ProviderError:
    try:
        why = msgspec.json.decode(answer, type=Refusal).error
    except msgspec.DecodeError:
        why = f"status {status}"
    if status == 404:
        return NoSuchMachineError(why)
    return ProviderError(why, retryable=status in (409, 429) or status >= 500)


def _machine(view: MachineView) -> Machine:
    return Machine(view.machine_id, view.zone, view.instance_id, view.instance_type, view.status, view.gone)
