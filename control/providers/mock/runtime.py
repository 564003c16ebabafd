"""The processes of one machine: an agent, and an engine unless the agent reads the host itself."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from control.providers.mock.messages import ProcessAct
from control.providers.mock.offers import DEFAULT_MODEL, offered
from control.providers.mock.records import MachineRecord
from fleetpulse.local.ports import LOOPBACK
from fleetpulse.local.processes import Child

# An agent ends within 5 s.
_STOP_SECONDS: Final = 6.0
_OWN_SETTINGS: Final = ("FLEETPULSE_", "WORKER_", "OTEL_")


class MachineRuntime:
    """Owns the processes; one call at a time, which the lock sees to."""

    def __init__(self, record: MachineRecord, data_dir: Path) -> None:
        self._record = record
        self._data_dir = data_dir
        self._lock = asyncio.Lock()
        self._children: dict[str, Child] = {}

    def pid(self, name: str) -> int | None:
        """Process id of the agent or the engine, None while it does not run."""
        child = self._children.get(name)
        return child.pid if child is not None and child.running else None

    @property
    def started(self) -> bool:
        """Whether it was started and not stopped since; a process may have ended all the same."""
        return bool(self._children)

    async def start(self, again: bool = False) -> None:
        """Start what does not run; ``again`` ends what runs first, for new settings. Raises StartError."""
        async with self._lock:
            if again:
                await self._stop()
            for name in self._wanted():
                await self._start(name)

    async def stop(self) -> None:
        """End the processes in order."""
        async with self._lock:
            await self._stop()

    async def kill(self) -> None:
        """End the processes as if the plug were pulled."""
        async with self._lock:
            for child in self._children.values():
                await asyncio.to_thread(child.kill)
            self._children = {}

    async def act(self, name: str, what: ProcessAct) -> None:
        """Do something to the agent or the engine; nothing happens to one that does not run."""
        async with self._lock:
            child = self._children.get(name)
            if child is None:
                return
            if what == "start":
                await self._start(name)
            else:
                await asyncio.to_thread({"kill": child.kill, "freeze": child.freeze, "thaw": child.thaw}[what])

    async def _start(self, name: str) -> None:
        if self.pid(name) is None:
            self._children[name] = self._wanted()[name]
            await asyncio.to_thread(self._children[name].start)

    async def _stop(self) -> None:
        children = self._children.values()
        await asyncio.gather(*(asyncio.to_thread(each.stop, signal.SIGTERM, _STOP_SECONDS) for each in children))
        self._children = {}

    def _wanted(self) -> dict[str, Child]:
        record = self._record
        engine = {} if record.options.host else {"engine": self._child("engine", self._engine(), {})}
        return {**engine, "agent": self._child("agent", ["fleetpulse", "agent"], self._agent_environment())}

    def _engine(self) -> list[str]:
        record = self._record
        model = record.runtime.model if record.runtime is not None else None
        return [
            "fleetpulse.local.mock_engine",
            *("--port", str(record.engine_port)),
            *("--model", model or DEFAULT_MODEL),
            *("--load", str(record.options.engine_requests_per_second)),
            *(["--stalled"] if record.options.engine_stalls else []),
            *(["--loading"] if record.options.engine_never_ready else []),
        ]

    def _agent_environment(self) -> dict[str, str]:
        """The settings that control gave; what only the machine can know wins over them."""
        record = self._record
        # All machines are this host: without an id of its own each would be the same worker.
        environment = {
            "FLEETPULSE_AGENT_WORKER_ID": record.wanted.instance_id,
            "FLEETPULSE_AGENT_INSTANCE_ID": record.wanted.instance_id,
            **(record.runtime.environment if record.runtime is not None else {}),
            "FLEETPULSE_AGENT_HOST": LOOPBACK,
            "FLEETPULSE_AGENT_PORT": str(record.agent_port),
            "FLEETPULSE_AGENT_STATE_DIR": str(self.folder),
        }
        return environment | (_host_hardware() if record.options.host else _hardware(record))

    @property
    def folder(self) -> Path:
        """What the machine keeps while it exists."""
        return self._data_dir / "machines" / self._record.machine_id

    def _child(self, name: str, module: list[str], settings: Mapping[str, str]) -> Child:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_SETTINGS)}
        log_file = self._data_dir / "logs" / f"{self._record.wanted.instance_id}-{name}.log"
        return Child(name, [sys.executable, "-m", *module], log_file, {**inherited, **settings})


def _host_hardware() -> dict[str, str]:
    return {"FLEETPULSE_AGENT_GPUS": "auto", "FLEETPULSE_AGENT_ENGINE": "none", "WORKER_SIMULATE_GPU_COUNT": "0"}


def _hardware(record: MachineRecord) -> dict[str, str]:
    engine = {
        "FLEETPULSE_AGENT_ENGINE": "vllm",
        "FLEETPULSE_AGENT_ENGINE_URL": f"http://{LOOPBACK}:{record.engine_port}",
    }
    offer = offered(record.wanted.instance_type, record.wanted.zone)
    if offer is None or offer.gpu_model is None:
        return engine | {"FLEETPULSE_AGENT_GPUS": "none"}
    return engine | {
        "FLEETPULSE_AGENT_GPUS": "simulated",
        "WORKER_SIMULATE_GPU_COUNT": str(offer.gpu_count),
        "WORKER_SIMULATE_GPU_MODEL": offer.gpu_model,
        "WORKER_SIMULATE_GPU_VRAM_BYTES": str(offer.gpu_memory_bytes),
    }
