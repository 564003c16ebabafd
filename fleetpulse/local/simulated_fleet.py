"""Simulated agents: many workers with simulated GPUs and an engine, all in one process, cheap enough for ten
thousand. Their messages are the agent's own; what they report is one worker's readings, at different moments."""

import dataclasses
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from agent import gpu_reading, instruments
from agent.engines import measurements as engine_measurements
from agent.engines.adapter import EngineReading
from agent.engines.watch import EngineSnapshot
from agent.heartbeats import HeartbeatMaker, load_of
from agent.identity import WorkerIdentity, identify
from agent.instruments import Measurement
from agent.sampling import own_measurements
from agent.simulated_gpu import SimulatedGpus
from agent.system import SystemReader
from fleetpulse.local.stencil import Stencil
from fleetpulse.settings import AgentSettings, load
from fleetpulse.stream import heartbeat

MODEL: Final = "simulated-model"
# Names of simulated workers begin with it.
PREFIX: Final = "sim"
# Moments of the simulated worker's life that agents report in turn, and the time between them.
_FRAMES: Final = 32
_FRAME_SECONDS: Final = 5.0
# How fast counters grow: seconds, bytes, joules, tokens, steps and requests a second. Errors do not.
_GROWTH_PER_SECOND: Final[Mapping[str, float]] = {
    "s": 1.0,
    "By": 1e6,
    "J": 400.0,
    "{token}": 600.0,
    "{step}": 20.0,
    "{request}": 2.0,
    "{message}": 1.0,
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Frame:
    measurements: list[Measurement]
    load: heartbeat.Load
    engine: EngineSnapshot


class SimulatedFleet:
    """``agents`` workers named ``PREFIX-000000`` and so on, each with ``gpus`` GPUs."""

    def __init__(self, agents: int, gpus: int, heartbeat_interval_seconds: float, prefix: str = PREFIX) -> None:
        settings = load(AgentSettings, worker_id=f"{prefix}-000000", simulate_gpu_count=gpus, gpus="simulated")
        first = identify(settings)
        system = SystemReader()
        self._clock = time.time()
        boards = SimulatedGpus(first.worker_id, settings, self._simulated_time)
        self._began = time.monotonic()
        self._frames = [self._frame(system, boards, place) for place in range(_FRAMES)]
        layout = self._frames[0].measurements
        hw_ids = [reading.device.hw_id for reading in boards.read()]
        self._stencil = Stencil(first, layout, [first.worker_id, first.boot_id, *hw_ids], system.boot_unix_nano)
        self._values = np.array([[m.value for m in frame.measurements] for frame in self._frames])
        counters = np.array([m.instrument.kind == "counter" for m in layout])
        self._values[:, counters] = self._values[0, counters]
        self._growth = np.array([_growth(m) for m in layout])
        identities = [_identity(first, prefix, place) for place in range(agents)]
        self.worker_ids = [identity.worker_id for identity in identities]
        self._keys = [identity.worker_id.encode() for identity in identities]
        self._ids = [_ids(identity, len(hw_ids)) for identity in identities]
        self._makers = [HeartbeatMaker(identity, heartbeat_interval_seconds) for identity in identities]
        self._exported = [0] * agents

    @property
    def points_per_message(self) -> int:
        """Data points of a metrics message."""
        return self._stencil.points

    def key(self, agent: int) -> bytes:
        """An agent's Kafka key."""
        return self._keys[agent]

    def metrics(self, agent: int) -> bytes:
        """An agent's next metrics message."""
        self._exported[agent] += 1
        values = self._values[self._moment(agent)] + self._growth * (time.monotonic() - self._began)
        return self._stencil.message(self._ids[agent], time.time_ns(), values, self._exported[agent])

    def heartbeat(self, agent: int) -> bytes:
        """An agent's next heartbeat."""
        frame = self._frames[self._moment(agent)]
        made = self._makers[agent].make("ready", frame.engine, frame.load)
        # However seldom it sends samples: an engine with work whose steps stand still is told as stalled.
        steps = int(_GROWTH_PER_SECOND["{step}"] * (time.monotonic() - self._began))
        assert made.engine is not None
        engine = msgspec.structs.replace(made.engine, step_count=steps)
        return heartbeat.encode(msgspec.structs.replace(made, engine=engine))

    def _moment(self, agent: int) -> int:
        return (agent * 7 + self._exported[agent]) % _FRAMES

    def _simulated_time(self) -> float:
        return self._clock

    def _frame(self, system: SystemReader, boards: SimulatedGpus, place: int) -> _Frame:
        self._clock += _FRAME_SECONDS
        readings = boards.read()
        engine = _engine(place)
        told = [
            *own_measurements(0, 0, 0),
            *system.read(time.time()),
            *gpu_reading.measurements(readings),
            *engine_measurements.measurements(engine),
        ]
        # Shares of CPU time need some to have passed; a reading that lacks them would change the message's shape.
        usable = [m for m in told if m.instrument is not instruments.CPU_UTILIZATION]
        busy = 0.5 + 0.4 * float(np.sin(place / _FRAMES * 2 * np.pi))
        usable += [Measurement(instruments.CPU_UTILIZATION, {"cpu.mode": "user"}, busy)]
        usable += [Measurement(instruments.CPU_UTILIZATION, {"cpu.mode": "idle"}, 1.0 - busy)]
        return _Frame(usable, load_of(system.load(), readings), engine)


def _growth(measurement: Measurement) -> float:
    if measurement.instrument.kind != "counter":
        return 0.0
    return _GROWTH_PER_SECOND.get(measurement.instrument.unit, 0.0)


def _engine(place: int) -> EngineSnapshot:
    """A vLLM engine whose queue comes and goes."""
    values: dict[str, float] = dict.fromkeys(instruments.ENGINE_BY_COLUMN, 0.0)
    values |= {
        "requests_running": float(place % 16),
        "requests_waiting": float(max(0, place % 16 - 12)),
        "kv_cache_usage_ratio": (place % 16) / 20,
    }
    reading = EngineReading(MODEL, "0", values)
    return EngineSnapshot("ready", "vllm", "http://127.0.0.1:8100", (MODEL,), (reading,))


def _identity(first: WorkerIdentity, prefix: str, place: int) -> WorkerIdentity:
    name = f"{prefix}-{place:06d}"
    return dataclasses.replace(first, worker_id=name, instance_id=name, boot_id=str(uuid.uuid4()))


def _ids(identity: WorkerIdentity, gpus: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The texts of an agent's own in its messages, one after the other, in the stencil's order."""
    hw_ids = _hw_ids(identity.worker_id, gpus)
    return np.frombuffer("".join((identity.worker_id, identity.boot_id, *hw_ids)).encode(), np.uint8)


def _hw_ids(worker_id: str, gpus: int) -> Sequence[str]:
    """The same at every run, as a board's id is."""
    return [f"GPU-{uuid.uuid5(uuid.NAMESPACE_DNS, f'{worker_id}.{index}')}" for index in range(gpus)]
