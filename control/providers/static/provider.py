"""The provider ``static``: a machine belongs to the instance that its claim names, which is kept on the machine."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

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
from control.providers.static.machines import StaticMachine
from control.providers.static.package import package
from control.providers.static.remote import connected
from fleetpulse.settings import StaticSettings


class StaticProvider:
    """Machine ids are the names in the file. Each call opens a connection of its own."""

    name = "static"

    def __init__(self, settings: StaticSettings, machines: Sequence[StaticMachine]) -> None:
        self._settings = settings
        self._machines = {machine.name: machine for machine in machines}
        # Of machines that cannot be reached, the last that was known.
        self._claims: dict[str, str | None] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return

    async def catalogue(self) -> Catalogue:
        """What the file lists, whether it is taken or not."""
        types: dict[str, InstanceType] = {}
        zones: dict[str, list[str]] = {}
        for machine in self._machines.values():
            if machine.zone not in zones.setdefault(machine.instance_type, []):
                zones[machine.instance_type].append(machine.zone)
            types[machine.instance_type] = _instance_type(machine, tuple(zones[machine.instance_type]))
        return Catalogue(tuple(dict.fromkeys(each.zone for each in self._machines.values())), tuple(types.values()))

    async def create(self, request: MachineRequest) -> Machine:
        """Claim a machine of this type in this zone that nobody has. Raises ProviderError."""
        fitting = [
            machine
            for machine in self._machines.values()
            if (machine.zone, machine.instance_type) == (request.zone, request.instance_type)
        ]
        if not fitting:
            raise ProviderError(
                f"no machine of type {request.instance_type} is listed in zone {request.zone}", retryable=False
            )
        found = await asyncio.gather(*(self._look(machine) for machine in fitting))
        for machine in found:
            if machine.instance_id == request.instance_id:
                return machine
        for machine in found:
            if machine.instance_id is None and machine.status != "unreachable":
                claimed = await self._claim(machine.machine_id, request.instance_id)
                if claimed is not None:
                    return claimed
        away = [machine.machine_id for machine in found if machine.status == "unreachable"]
        raise ProviderError(
            f"all {len(fitting)} machines of type {request.instance_type} in zone {request.zone} are taken"
            + (f" or cannot be reached ({', '.join(away)})" if away else ""),
            retryable=True,
        )

    async def start_runtime(self, machine: Machine, request: MachineRequest) -> None:
        """Begin to install and start, unless just this runs or is being installed.

        Raises ProviderError, also when the installation begun by an earlier call has failed; the next call tries again.
        """
        listed = self._listed(machine)
        wanted = package(listed, request, self._settings)
        async with connected(listed, self._settings.timeout_seconds) as remote:
            status = await remote.status()
            if status.claim != request.instance_id:
                raise NoSuchMachineError(f"machine {listed.name} does not belong to {request.instance_id}")
            if status.version == wanted.version and status.state in ("running", "installing"):
                return
            if status.version == wanted.version and status.state == "failed":
                await remote.stop()
                raise ProviderError(f"machine {listed.name}: installing failed: {status.failure}", retryable=True)
            for name, content in wanted.files.items():
                await remote.put(name, content)
            await remote.start(wanted.version, wanted.has_engine, wanted.installation)

    async def stop_runtime(self, machine: Machine) -> None:
        """Raises ProviderError."""
        async with connected(self._listed(machine), self._settings.timeout_seconds) as remote:
            if (await remote.status()).claim == machine.instance_id:
                await remote.stop()

    async def address(self, machine: Machine) -> Address | None:
        """Raises NoSuchMachineError when it does not belong to the instance any more, and ProviderError."""
        listed = self._listed(machine)
        async with connected(listed, self._settings.timeout_seconds) as remote:
            if (await remote.status()).claim != machine.instance_id:
                raise NoSuchMachineError(f"machine {listed.name} does not belong to {machine.instance_id}")
        host = f"[{listed.host}]" if ":" in listed.host else listed.host
        engine_url = f"http://{host}:{listed.engine_port}" if listed.engine_port is not None else None
        return Address(listed.host, f"http://{host}:{listed.agent_port}", engine_url, listed.port)

    async def delete(self, machine: Machine) -> None:
        """Stop what runs and give the machine back; one that left the file is gone. Raises ProviderError."""
        listed = self._machines.get(machine.machine_id)
        if listed is None or machine.instance_id is None:
            return
        async with connected(listed, self._settings.timeout_seconds) as remote:
            await remote.release(machine.instance_id)
        self._claims.pop(listed.name, None)

    async def inventory(self) -> Sequence[Machine]:
        """Those that are claimed, and those that cannot be reached, which may be."""
        found = await asyncio.gather(*(self._look(machine) for machine in self._machines.values()))
        return [machine for machine in found if machine.instance_id is not None or machine.status == "unreachable"]

    async def volumes(self) -> Sequence[Volume]:
        """None: a machine's disks stay with it."""
        return ()

    async def delete_volume(self, volume: Volume) -> None:
        """There are none."""

    async def _claim(self, name: str, instance_id: str) -> Machine | None:
        """None when another instance was faster."""
        listed = self._machines[name]
        async with connected(listed, self._settings.timeout_seconds) as remote:
            self._claims[name] = await remote.claim(instance_id)
        return _machine(listed, instance_id, "claimed") if self._claims[name] == instance_id else None

    async def _look(self, listed: StaticMachine) -> Machine:
        try:
            async with connected(listed, self._settings.timeout_seconds) as remote:
                status = await remote.status()
        except ProviderError:
            return _machine(listed, self._claims.get(listed.name), "unreachable")
        self._claims[listed.name] = status.claim
        return _machine(listed, status.claim, status.state)

    def _listed(self, machine: Machine) -> StaticMachine:
        try:
            return self._machines[machine.machine_id]
        except KeyError:
            raise NoSuchMachineError(f"no machine {machine.machine_id} is listed") from None


def _machine(listed: StaticMachine, instance_id: str | None, status: str) -> Machine:
    return Machine(listed.name, listed.zone, instance_id, listed.instance_type, status)


def _instance_type(machine: StaticMachine, zones: tuple[str, ...]) -> InstanceType:
    return InstanceType(
        machine.instance_type,
        machine.gpu_model,
        machine.gpu_count,
        machine.gpu_memory_bytes,
        machine.cpu_count,
        machine.memory_bytes,
        machine.price_per_hour,
        machine.currency,
        zones,
    )
