"""``fleetpulse simulate``: drives many simulated agents from one process, and counts what the broker took."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

from fleetpulse.local.simulated_fleet import SimulatedFleet
from fleetpulse.settings import SettingsError, StreamSettings
from fleetpulse.stream.errors import NotDeliveredError
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import HEARTBEATS, METRICS

_TICK_SECONDS: Final = 0.01
_PROGRESS_SECONDS: Final = 5.0
# Messages on their way at most; beyond, the next ones wait, and the run falls behind its schedule, which is reported.
_IN_FLIGHT_MOST: Final = 20_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for. ``duration_seconds`` None is until stopped."""

    agents: int
    interval_seconds: float
    heartbeat_interval_seconds: float
    duration_seconds: float | None
    gpus: int

    @classmethod
    def checked(
        cls,
        agents: int,
        interval_seconds: float,
        heartbeat_interval_seconds: float,
        duration_seconds: float | None,
        gpus: int,
    ) -> Self:
        """Raises SettingsError for a number that makes no sense."""
        if not 1 <= agents <= 1_000_000:
            raise SettingsError(f"--agents: {agents} is not between 1 and 1000000")
        if not 0 <= gpus <= 64:
            raise SettingsError(f"--gpus: {gpus} is not between 0 and 64")
        for name, seconds in (("interval", interval_seconds), ("heartbeat-interval", heartbeat_interval_seconds)):
            if not 0 < seconds <= 3600:
                raise SettingsError(f"--{name}: {seconds:g} is not between 0 and 3600 seconds")
        if duration_seconds is not None and duration_seconds <= 0:
            raise SettingsError(f"--duration: {duration_seconds:g} is not more than 0 seconds")
        return cls(agents, interval_seconds, heartbeat_interval_seconds, duration_seconds, gpus)


@dataclass(slots=True)
class Counts:
    """Messages of one kind: handed to the producer, acknowledged by the broker, given up."""

    sent: int = 0
    acked: int = 0
    failed: int = 0
    bytes_sent: int = 0


@dataclass(slots=True)
class Report:
    """What happened. ``behind_seconds`` is the longest a message was made after its time."""

    agents: int
    points_per_message: int
    seconds: float = 0.0
    behind_seconds: float = 0.0
    samples: Counts = field(default_factory=Counts)
    heartbeats: Counts = field(default_factory=Counts)

    @property
    def acked_per_second(self) -> float:
        """Messages of both kinds that the broker took, a second."""
        return (self.samples.acked + self.heartbeats.acked) / self.seconds if self.seconds else 0.0

    def line(self) -> str:
        """For people."""
        parts = [f"{self.agents} agents", f"{self.seconds:.0f} s"]
        for name, counts in (("samples", self.samples), ("heartbeats", self.heartbeats)):
            parts.append(f"{name}: {counts.sent} sent, {counts.acked} acked, {counts.failed} failed")
        parts.append(f"{self.acked_per_second:,.0f} messages/s")
        if self.behind_seconds > 1:
            parts.append(f"up to {self.behind_seconds:.1f} s behind schedule")
        return " · ".join(parts)


async def simulate(
    plan: Plan,
    settings: StreamSettings,
    stop: asyncio.Event,
    json_file: Path | None = None,
    tell: Callable[[str], None] = lambda line: print(line, flush=True),
) -> Report:
    """Send until ``stop`` is set or the time is up, then wait for the last acknowledgements."""
    fleet = SimulatedFleet(plan.agents, plan.gpus, plan.heartbeat_interval_seconds)
    producer = StreamProducer(settings, "fleetpulse-simulate")
    report = Report(plan.agents, fleet.points_per_message)
    await producer.start()
    try:
        await _drive(plan, fleet, producer, report, stop, tell)
    finally:
        await producer.stop()
    tell(report.line())
    if json_file is not None:
        _write(report, json_file)
    return report


def _write(report: Report, json_file: Path) -> None:
    json_file.write_text(json.dumps(asdict(report) | {"acked_per_second": report.acked_per_second}, indent=2) + "\n")


class _Schedule:
    """Whose turn it is: agents spread evenly over the interval, round after round."""

    def __init__(self, agents: int, interval_seconds: float) -> None:
        self._agents = agents
        self._spacing_seconds = interval_seconds / agents
        self._turns = 0

    def due(self, elapsed_seconds: float) -> range:
        """Turns that have come since the last call; an agent is its turn modulo the agents."""
        first, self._turns = self._turns, max(self._turns, int(elapsed_seconds / self._spacing_seconds) + 1)
        return range(first, self._turns)

    def behind(self, turn: int, elapsed_seconds: float) -> float:
        """How long ago a turn's time was."""
        return elapsed_seconds - turn * self._spacing_seconds

    def agent(self, turn: int) -> int:
        """Whose turn."""
        return turn % self._agents


async def _drive(
    plan: Plan,
    fleet: SimulatedFleet,
    producer: StreamProducer,
    report: Report,
    stop: asyncio.Event,
    tell: Callable[[str], None],
) -> None:
    samples = _Schedule(plan.agents, plan.interval_seconds)
    heartbeats = _Schedule(plan.agents, plan.heartbeat_interval_seconds)
    room = asyncio.Semaphore(_IN_FLIGHT_MOST)
    began = time.monotonic()
    told = 0.0
    async with asyncio.TaskGroup() as sending:
        while not stop.is_set():
            elapsed = time.monotonic() - began
            if plan.duration_seconds is not None and elapsed >= plan.duration_seconds:
                break
            for schedule, counts, topic, make in (
                (heartbeats, report.heartbeats, HEARTBEATS.name, fleet.heartbeat),
                (samples, report.samples, METRICS.name, fleet.metrics),
            ):
                for turn in schedule.due(elapsed):
                    await room.acquire()
                    late = schedule.behind(turn, time.monotonic() - began)
                    report.behind_seconds = max(report.behind_seconds, late)
                    agent = schedule.agent(turn)
                    sending.create_task(_send(producer, topic, make(agent), fleet.key(agent), counts, room))
            report.seconds = time.monotonic() - began
            if report.seconds - told >= _PROGRESS_SECONDS:
                told = report.seconds
                tell(report.line())
            await asyncio.sleep(_TICK_SECONDS)
    report.seconds = time.monotonic() - began


async def _send(
    producer: StreamProducer, topic: str, value: bytes, key: bytes, counts: Counts, room: asyncio.Semaphore
) -> None:
    counts.sent += 1
    counts.bytes_sent += len(value)
    try:
        await producer.send(topic, value, key)
    except NotDeliveredError:
        counts.failed += 1
    else:
        counts.acked += 1
    finally:
        room.release()
