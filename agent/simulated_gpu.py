"""GPUs that are not there: load, memory, power and temperature that follow each other as on a real board.

The load is a function of the worker's id, the GPU's index and the time alone, so that two runs agree; energy and
temperature carry on from one reading to the next.
"""

import math
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agent.gpu_reading import NO_XID, DriverState, GpuDevice, GpuReading
from fleetpulse.settings import AgentSettings

_NAMESPACE: Final = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")
# Of an H100 SXM board, from its data sheet and from boards at rest.
IDLE_WATTS: Final = 70.0
LIMIT_WATTS: Final = 700.0
AMBIENT_CELSIUS: Final = 28.0
CELSIUS_PER_WATT: Final = 0.07
SLOWDOWN_CELSIUS: Final = 87.0
SHUTDOWN_CELSIUS: Final = 92.0
BASE_CLOCK_HERTZ: Final = 345e6
BOOST_CLOCK_HERTZ: Final = 1_980e6
MEMORY_CLOCK_HERTZ: Final = 2_619e6
# A heat sink follows its load with about this delay.
THERMAL_SECONDS: Final = 25.0
DAY_SECONDS: Final = 86_400.0


def _noise(seed: str, time_seconds: float, period_seconds: float) -> float:
    """A smooth random curve between 0 and 1 that passes a new random value once a period."""
    step, part = divmod(time_seconds / period_seconds, 1.0)
    here = random.Random(f"{seed}:{step:.0f}").random()
    there = random.Random(f"{seed}:{step + 1:.0f}").random()
    ease = part * part * (3 - 2 * part)
    return here + (there - here) * ease


def _daily(seed: str, now: float) -> float:
    """Busiest in the early afternoon (UTC), quiet at night."""
    height = 0.5 - 0.5 * math.cos(2 * math.pi * (now / DAY_SECONDS - 2 / 24))
    return 0.05 + 0.8 * height + 0.15 * _noise(seed, now, 20)


def _bursty(seed: str, now: float) -> float:
    """Bursts of requests with pauses between them."""
    burst = max(0.0, _noise(f"{seed}:burst", now, 45) - 0.35) / 0.65
    return min(burst * 1.4, 0.9) + 0.1 * _noise(seed, now, 6)


def _steady(seed: str, now: float) -> float:
    return 0.7 + 0.1 * _noise(seed, now, 15)


def _idle(seed: str, now: float) -> float:
    return 0.02 * _noise(seed, now, 60)


LOADS: Final[dict[str, Callable[[str, float], float]]] = {
    "daily": _daily,
    "bursty": _bursty,
    "steady": _steady,
    "idle": _idle,
}


@dataclass(slots=True)
class _Board:
    device: GpuDevice
    seed: str
    read_at: float
    celsius: float
    joules: float = 0.0


class SimulatedGpus:
    """See GpuSource for the order of calls. ``clock`` gives Unix seconds."""

    def __init__(self, worker_id: str, settings: AgentSettings, clock: Callable[[], float] = time.time) -> None:
        self.state: DriverState = "ready"
        self._clock = clock
        self._memory_total = settings.simulate_gpu_vram_bytes
        self._load = LOADS[settings.simulate_gpu_load]
        self._boards = [
            self._board(worker_id, settings.simulate_gpu_model, index) for index in range(settings.simulate_gpu_count)
        ]

    def start(self) -> None:
        """There is no driver to open."""

    def read(self) -> list[GpuReading]:
        """All simulated GPUs now."""
        now = self._clock()
        return [self._read(board, now) for board in self._boards]

    def stop(self) -> None:
        """There is no driver to let go of."""

    def _board(self, worker_id: str, model: str, index: int) -> _Board:
        seed = f"{worker_id}/{index}"
        device = GpuDevice(f"GPU-{uuid.uuid5(_NAMESPACE, seed)}", index, model)
        now = self._clock()
        load = min(self._load(seed, now), 1.0)
        return _Board(device, seed, now, AMBIENT_CELSIUS + CELSIUS_PER_WATT * _watts(load))

    def _read(self, board: _Board, now: float) -> GpuReading:
        load = min(self._load(board.seed, now), 1.0)
        watts = _watts(load)
        passed = max(now - board.read_at, 0.0)
        settled = AMBIENT_CELSIUS + CELSIUS_PER_WATT * watts
        board.celsius += (settled - board.celsius) * (1 - math.exp(-passed / THERMAL_SECONDS))
        board.joules += watts * passed
        board.read_at = now
        return GpuReading(
            board.device,
            utilization_ratio=round(load, 2),
            encoder_utilization_ratio=0.0,
            decoder_utilization_ratio=0.0,
            memory_used_bytes=int(self._memory_total * _memory_ratio(board.seed, now, load)),
            memory_total_bytes=self._memory_total,
            temperature_celsius=float(round(board.celsius)),
            memory_temperature_celsius=float(round(board.celsius + 6)),
            slowdown_temperature_celsius=SLOWDOWN_CELSIUS,
            shutdown_temperature_celsius=SHUTDOWN_CELSIUS,
            power_watts=round(watts, 3),
            power_limit_watts=LIMIT_WATTS,
            energy_joules=round(board.joules, 3),
            sm_clock_hertz=BASE_CLOCK_HERTZ + (BOOST_CLOCK_HERTZ - BASE_CLOCK_HERTZ) * min(load * 20, 1.0),
            memory_clock_hertz=MEMORY_CLOCK_HERTZ,
            thermal_throttle=board.celsius >= SLOWDOWN_CELSIUS,
            power_throttle=watts >= LIMIT_WATTS,
            corrected_errors=0,
            uncorrected_errors=0,
            xid_errors={NO_XID: 0},
        )


def _watts(load: float) -> float:
    """Power rises steeply at first: any kernel at all wakes most of the board."""
    return float(IDLE_WATTS + (LIMIT_WATTS - IDLE_WATTS) * load**0.7)


def _memory_ratio(seed: str, now: float, load: float) -> float:
    """Weights and the KV cache's pool are taken at the start; a little more comes and goes with the load."""
    return 0.82 + 0.06 * load + 0.02 * _noise(f"{seed}:memory", now, 90)
