"""The mock cloud: machines that come up, fail as they are told to, and are gone again."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from control.providers.mock import records
from control.providers.mock.messages import (
    OUT_OF_STOCK,
    Faults,
    MachineView,
    NewMachine,
    Options,
    Runtime,
    VolumeView,
    changed,
)
from control.providers.mock.offers import offered
from control.providers.mock.records import MachineRecord
from control.providers.mock.runtime import MachineRuntime
from fleetpulse.local.ports import LOOPBACK, free_port, is_free
from fleetpulse.local.processes import StartError
from fleetpulse.local.state_file import locked
from fleetpulse.telemetry import logger

_log = logger(__name__)

_ENGINE_SECONDS: Final = 5.0
_TELL_ENGINE_EVERY_SECONDS: Final = 0.05


class RefusedError(Exception):
    """A request that is not done; ``status`` is the HTTP status that says why."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Cloud:
    """Owns the machines in a folder. Use ``opened``."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._file = data_dir / "cloud.json"
        self._kept = records.read(self._file)
        self._runtimes: dict[str, MachineRuntime] = {}
        self._changed = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def opened(cls, data_dir: Path) -> AsyncIterator["Cloud"]:
        """The cloud while the block runs: what ran on its machines before runs again, and nothing does afterwards.

        Raises StartError when another cloud has the folder, ValueError when its file is damaged.
        """
        with locked(data_dir):
            cloud = cls(data_dir)
            for record in cloud._kept.machines.values():
                cloud._settle_in(record)
            try:
                async with asyncio.TaskGroup() as group:
                    keeper = group.create_task(cloud._keep(), name="mock-cloud")
                    try:
                        yield cloud
                    finally:
                        keeper.cancel()
            finally:
                await asyncio.gather(*(runtime.stop() for runtime in cloud._runtimes.values()))

    def machines(self) -> list[MachineView]:
        """All of them, those that failed too."""
        return [self._view(record) for record in self._kept.machines.values()]

    def machine(self, machine_id: str) -> MachineView:
        """Raises RefusedError."""
        return self._view(self._record(machine_id))

    def volumes(self) -> list[VolumeView]:
        """All disks."""
        return list(self._kept.volumes.values())

    def preset(self, options: Mapping[str, Any]) -> Options:
        """Options of new machines from now on, where they are asked for without; {} is none. Raises RefusedError."""
        self._kept.preset = _changed(Options(), options)
        self._save()
        return self._kept.preset

    async def create(self, wanted: NewMachine) -> MachineView:
        """The machine of an instance, made unless there is one. Raises RefusedError."""
        record = self._kept.of_instance(wanted.instance_id)
        if record is None:
            record = self._make(wanted)
            # The answer may never be heard; the machine is there.
            await asyncio.sleep(record.options.create_slow_seconds)
        return self._view(record)

    async def start_runtime(self, machine_id: str, wanted: Runtime) -> MachineView:
        """Have agent and engine run, now or once it has booted. Raises RefusedError."""
        record = self._record(machine_id)
        if record.failed:
            raise RefusedError("the machine has failed", 409)
        differs = record.runtime is not None and record.runtime != wanted
        if record.runtime != wanted:
            record.runtime = wanted
            self._save()
        if record.booted:
            await self._runtimes[machine_id].start(again=differs)
        self._changed.set()
        return self._view(record)

    async def stop_runtime(self, machine_id: str) -> MachineView:
        """Have nothing run on it. Raises RefusedError."""
        record = self._record(machine_id)
        if record.runtime is not None:
            record.runtime = None
            self._save()
        await self._runtimes[machine_id].stop()
        return self._view(record)

    async def change(self, machine_id: str, faults: Faults) -> MachineView:
        """Raises RefusedError, and StartError when a process does not start."""
        record = self._record(machine_id)
        record.options = _changed(record.options, faults.options)
        self._save()
        for name, act in (("agent", faults.acts.agent), ("engine", faults.acts.engine)):
            if act is not None:
                await self._runtimes[machine_id].act(name, act)
        if {"engine_stalls", "engine_never_ready"} & set(faults.options):
            await self._tell_engine(record)
        self._changed.set()
        return self._view(record)

    async def delete(self, machine_id: str) -> None:
        """Raises RefusedError."""
        record = self._record(machine_id)
        if record.options.delete_silently_fails > 0:
            record.options = _changed(
                record.options, {"delete_silently_fails": record.options.delete_silently_fails - 1}
            )
            self._save()
            return
        await self._remove(record)

    def delete_volume(self, volume_id: str) -> None:
        """Raises RefusedError."""
        volume = self._kept.volumes.get(volume_id)
        if volume is None:
            raise RefusedError(f"there is no volume {volume_id}", 404)
        if volume.machine_id is not None:
            raise RefusedError(f"the volume is attached to {volume.machine_id}", 409)
        del self._kept.volumes[volume_id]
        self._save()

    def _make(self, wanted: NewMachine) -> MachineRecord:
        if offered(wanted.instance_type, wanted.zone) is None:
            raise RefusedError(f"there is no instance type {wanted.instance_type} in zone {wanted.zone}", 400)
        options = _changed(self._kept.preset, wanted.options)
        refused = self._kept.refused.get(wanted.instance_id, 0)
        if refused < options.create_fails:
            self._kept.refused[wanted.instance_id] = refused + 1
            self._save()
            raise RefusedError(OUT_OF_STOCK, 503)
        self._kept.refused.pop(wanted.instance_id, None)
        record = self._kept.add(wanted, options, self._port(), self._port())
        self._save()
        self._settle_in(record)
        _log.info("machine made", extra={"machine_id": record.machine_id, "instance_id": wanted.instance_id})
        return record

    def _settle_in(self, record: MachineRecord) -> None:
        self._runtimes[record.machine_id] = MachineRuntime(record, self._data_dir)
        if not is_free(record.agent_port):
            record.agent_port = self._port()
        if not is_free(record.engine_port):
            record.engine_port = self._port()
        self._changed.set()

    def _port(self) -> int:
        """A free one that no machine has."""
        taken = {port for each in self._kept.machines.values() for port in (each.agent_port, each.engine_port)}
        while (port := free_port()) in taken:
            pass
        return port

    async def _keep(self) -> None:
        """Do what is due on each machine, then wait until something is due or changes."""
        while True:
            self._changed.clear()
            for record in list(self._kept.machines.values()):
                await self._do_due(record)
            due = [at for record in self._kept.machines.values() for at in _due_times(record) if at > time.time()]
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(due) - time.time()) if due else None):
                    await self._changed.wait()

    async def _do_due(self, record: MachineRecord) -> None:
        options, now = record.options, time.time()
        if options.vanishes_after_seconds is not None and now >= record.asked_at + options.vanishes_after_seconds:
            await self._remove(record)
            return
        runtime = self._runtimes[record.machine_id]
        if record.failed and runtime.started:
            await runtime.kill()
        elif record.runtime is not None and record.booted and not runtime.started:
            try:
                await runtime.start()
            except StartError as error:
                _log.warning("runtime not started", extra={"machine_id": record.machine_id, "error": str(error)})

    async def _remove(self, record: MachineRecord) -> None:
        runtime = self._runtimes[record.machine_id]
        await runtime.kill()
        if self._kept.machines.get(record.machine_id) is not record:
            return  # another call was faster
        self._kept.remove(record)
        del self._runtimes[record.machine_id]
        self._save()
        shutil.rmtree(runtime.folder, ignore_errors=True)
        _log.info("machine gone", extra={"machine_id": record.machine_id})

    async def _tell_engine(self, record: MachineRecord) -> None:
        """An engine that runs changes at once; one that does not gets it with its start."""
        state = {"stalled": record.options.engine_stalls, "loading": record.options.engine_never_ready}
        deadline = time.monotonic() + _ENGINE_SECONDS
        runtime = self._runtimes[record.machine_id]
        url = f"http://{LOOPBACK}:{record.engine_port}/mock/state"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ENGINE_SECONDS)) as session:
            while runtime.pid("engine") is not None and time.monotonic() < deadline:
                with suppress(aiohttp.ClientConnectionError):  # it is still starting
                    async with session.post(url, json=state):
                        return
                await asyncio.sleep(_TELL_ENGINE_EVERY_SECONDS)

    def _record(self, machine_id: str) -> MachineRecord:
        try:
            return self._kept.machines[machine_id]
        except KeyError:
            raise RefusedError(f"there is no machine {machine_id}", 404) from None

    def _view(self, record: MachineRecord) -> MachineView:
        runtime = self._runtimes.get(record.machine_id)
        engine_url = None if record.options.host else f"http://{LOOPBACK}:{record.engine_port}"
        return MachineView(
            record.machine_id,
            record.wanted.zone,
            record.wanted.instance_id,
            record.wanted.instance_type,
            record.status,
            record.failed,
            f"http://{LOOPBACK}:{record.agent_port}" if record.reachable else None,
            engine_url if record.reachable else None,
            runtime.pid("agent") if runtime is not None else None,
            runtime.pid("engine") if runtime is not None else None,
        )

    def _save(self) -> None:
        records.write(self._file, self._kept)


def _due_times(record: MachineRecord) -> list[float]:
    after = [record.options.boot_seconds]
    if record.options.vanishes_after_seconds is not None:
        after.append(record.options.vanishes_after_seconds)
    return [record.asked_at + seconds for seconds in after]


def _changed(options: Options, changes: Mapping[str, Any]) -> Options:
    try:
        return changed(options, changes)
    except msgspec.ValidationError as error:
        raise RefusedError(f"options: {error}", 422) from error
