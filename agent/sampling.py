"""One sample: host, GPUs and engine read at one time, and turned into one message."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from opentelemetry.sdk.metrics.export import MetricsData

from agent import gpu_reading, instruments
from agent.blocking import BlockingThread, StillBusyError
from agent.engines import measurements as engine_measurements
from agent.engines.watch import ABSENT, EngineSnapshot
from agent.exporter import Exporter
from agent.footprint import release_start_memory
from agent.gpu_reading import GpuReading, GpuSource
from agent.instruments import Measurement
from agent.signals import Signals
from agent.system import HostLoad, SystemReader
from fleetpulse.telemetry import logger

_log = logger(__name__)

START_SECONDS: Final = 10.0
STOP_SECONDS: Final = 0.8

Read = TypeVar("Read")


@dataclass(slots=True)
class Latest:
    """The newest readings, for heartbeats and /metrics. None or empty where nothing has been read yet."""

    system: Sequence[Measurement] = ()
    gpus: Sequence[GpuReading] = ()
    engine: EngineSnapshot = ABSENT
    engine_was_ready: bool = False
    sampled: bool = False

    def measurements(self) -> list[Measurement]:
        """All readings as measurements."""
        return [
            *self.system,
            *gpu_reading.measurements(self.gpus),
            *engine_measurements.measurements(self.engine),
        ]


@dataclass(slots=True)
class Sampler:
    """Reads the sources, each on a thread of its own, so that one that hangs costs only its own readings."""

    system: SystemReader
    gpus: GpuSource
    exporter: Exporter
    signals: Signals
    timeout_seconds: float
    latest: Latest = field(default_factory=Latest)
    system_thread: BlockingThread = field(default_factory=lambda: BlockingThread("agent-system"))
    gpu_thread: BlockingThread = field(default_factory=lambda: BlockingThread("agent-gpu"))
    _failing: set[str] = field(default_factory=set)

    async def start(self) -> None:
        """Open the GPUs' driver, which may take seconds."""
        await self._read("gpu", self.gpu_thread, self.gpus.start, None, START_SECONDS)

    async def settle(self) -> None:
        """Give back the memory that only the start needed."""
        await self._read("memory", self.system_thread, release_start_memory, 0)

    async def stop(self) -> None:
        """Let go of the driver and of the threads."""
        await self._read("gpu", self.gpu_thread, self.gpus.stop, None, STOP_SECONDS)
        await self.gpu_thread.stop(0)
        await self.system_thread.stop(0)

    async def sample(self, own: Sequence[Measurement]) -> MetricsData:
        """Read everything, keep it in ``latest``, and make the message. ``own``: the agent's own measurements."""
        began = time.monotonic()
        now = time.time_ns()
        latest = self.latest
        latest.system = await self._read(
            "system", self.system_thread, lambda: self.system.read(now / 1e9), list[Measurement]()
        )
        latest.gpus = await self._read("gpu", self.gpu_thread, self.gpus.read, list[GpuReading]())
        message = self.exporter.build([*own, *latest.measurements()], now)
        latest.sampled = True
        self.signals.samples.inc()
        self.signals.sample_seconds.observe(time.monotonic() - began)
        return message

    def host_load(self) -> HostLoad | None:
        """The host's load since the last call; None when it cannot be read. Takes a tenth of a millisecond."""
        try:
            return self.system.load()
        except (OSError, RuntimeError, ValueError, ArithmeticError) as error:
            self._fail("load", error)
            return None

    async def _read(
        self,
        source: str,
        thread: BlockingThread,
        read: Callable[[], Read],
        otherwise: Read,
        timeout_seconds: float | None = None,
    ) -> Read:
        """A source's answer. Any error of a driver or of psutil is that source's: logged, counted, and survived."""
        try:
            result = await thread.call(read, timeout_seconds or self.timeout_seconds)
        except (StillBusyError, TimeoutError, OSError, RuntimeError, ValueError, ArithmeticError) as error:
            self._fail(source, error)
            return otherwise
        if source in self._failing:
            _log.info("reading again", extra={"source": source})
            self._failing.discard(source)
        return result

    def _fail(self, source: str, error: Exception) -> None:
        self.signals.sample_failures.labels(source).inc()
        if source not in self._failing:
            _log.error("no reading", extra={"source": source, "error": repr(error)})
        self._failing.add(source)


def own_measurements(heartbeats: int, spool_bytes: int, spool_dropped: int) -> list[Measurement]:
    """What the agent says of itself in its messages."""
    return [
        Measurement(instruments.HEARTBEATS, {}, heartbeats),
        Measurement(instruments.SPOOL_USAGE, {}, spool_bytes),
        Measurement(instruments.SPOOL_DROPPED, {}, spool_dropped),
    ]
