"""Heartbeats: what is known now, said at fixed times."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from agent.engines.watch import EngineSnapshot
from agent.gpu_reading import GpuReading
from agent.identity import WorkerIdentity
from agent.system import HostLoad
from fleetpulse.stream.heartbeat import Heartbeat, Load, WorkerStatus


@dataclass(slots=True)
class HeartbeatMaker:
    """Makes a boot's heartbeats, numbered from 1. ``clock`` gives Unix time in nanoseconds."""

    identity: WorkerIdentity
    interval_seconds: float
    agent_url: str | None = None
    clock: Callable[[], int] = time.time_ns
    made: int = 0

    def make(self, status: WorkerStatus, engine: EngineSnapshot, load: Load) -> Heartbeat:
        """The next heartbeat."""
        self.made += 1
        return Heartbeat(
            worker_id=self.identity.worker_id,
            instance_id=self.identity.instance_id,
            boot_id=self.identity.boot_id,
            sequence=self.made,
            sent_unix_nano=self.clock(),
            interval_seconds=self.interval_seconds,
            status=status,
            agent_version=self.identity.agent_version,
            agent_checksum=self.identity.agent_checksum,
            agent_url=self.agent_url,
            host_name=self.identity.host_name,
            model_id=engine.models[0] if engine.models else None,
            engine=engine.summary(),
            load=load,
        )


def load_of(host: HostLoad | None, gpus: Sequence[GpuReading]) -> Load:
    """The host's load, and the mean over its GPUs; what was not read is None."""
    used = [r.memory_used_bytes / r.memory_total_bytes for r in gpus if r.memory_used_bytes and r.memory_total_bytes]
    return Load(
        cpu_utilization_ratio=host.cpu_utilization_ratio if host is not None else None,
        memory_utilization_ratio=host.memory_utilization_ratio if host is not None else None,
        gpu_count=len(gpus),
        gpu_utilization_ratio=_mean_ratio([r.utilization_ratio for r in gpus if r.utilization_ratio is not None]),
        gpu_memory_utilization_ratio=_mean_ratio(used),
    )


def status_of(engine: EngineSnapshot, engine_was_ready: bool, gpus: Sequence[GpuReading]) -> WorkerStatus:
    """Starting until a configured engine was ready once; degraded while it is gone again or a GPU has failed."""
    if any(reading.failed for reading in gpus):
        return "degraded"
    if engine.state in ("absent", "ready"):
        return "ready"
    return "degraded" if engine_was_ready else "starting"


def _mean_ratio(values: Sequence[float]) -> float | None:
    return min(max(fmean(values), 0.0), 1.0) if values else None
