"""``fleetpulse simulate``: drives many simulated agents from one process, and counts what the broker took."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

from fleetpulse.local.progress import Show, progress, say
from fleetpulse.local.simulated_delivery import Counts, SimulatedDelivery
from fleetpulse.local.simulated_fleet import SimulatedFleet
from fleetpulse.report.folder import SIMULATION
from fleetpulse.settings import SettingsError, StreamSettings
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import HEARTBEATS, METRICS

_TICK_SECONDS: Final = 0.01


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
class Report:
    """What happened. ``behind_seconds`` is the longest a message was made after its time."""

    agents: int
    gpus: int
    interval_seconds: float
    heartbeat_interval_seconds: float
    points_per_message: int
    began_unix_seconds: float = 0.0
    ended_unix_seconds: float = 0.0
    seconds: float = 0.0
    behind_seconds: float = 0.0
    samples: Counts = field(default_factory=Counts)
    heartbeats: Counts = field(default_factory=Counts)

    @property
    def acked_per_second(self) -> float:
        """Messages of both kinds that the broker took, a second."""
        return (self.samples.acked + self.heartbeats.acked) / self.seconds if self.seconds else 0.0

    def brief(self) -> str:
        """For people, while it goes on."""
        told = {
            name: getattr(self.samples, name) + getattr(self.heartbeats, name)
            for name in ("sent", "acked", "failed", "spooled")
        }
        return f"{self.seconds:.0f} s · " + ", ".join(f"{count:,} {name}" for name, count in told.items())

    def line(self) -> str:
        """For people, at the end."""
        parts = [f"{self.agents} agents", f"{self.seconds:.0f} s"]
        for name, counts in (("samples", self.samples), ("heartbeats", self.heartbeats)):
            told = f"{name}: {counts.sent} sent, {counts.acked} acked, {counts.failed} failed"
            parts.append(f"{told}, {counts.spooled} spooled")
        parts.append(f"{self.acked_per_second:,.0f} messages/s")
        if self.behind_seconds > 1:
            parts.append(f"up to {self.behind_seconds:.1f} s behind schedule")
        return " · ".join(parts)


async def simulate(
    plan: Plan,
    settings: StreamSettings,
    stop: asyncio.Event,
    json_file: Path | None = None,
    tell: Callable[[str], None] = say,
    folder: Path | None = None,
) -> Report:
    """Send until ``stop`` is set or the time is up, then wait for the last acknowledgements. ``json_file`` gets the
    counts, and so does ``folder``, that of a recording."""
    fleet = SimulatedFleet(plan.agents, plan.gpus, plan.heartbeat_interval_seconds)
    producer = StreamProducer(settings, "fleetpulse-simulate")
    report = Report(
        plan.agents, plan.gpus, plan.interval_seconds, plan.heartbeat_interval_seconds, fleet.points_per_message
    )
    await producer.start()
    report.began_unix_seconds = time.time()
    try:
        with progress(plan.duration_seconds, tell) as show:
            await _drive(plan, fleet, SimulatedDelivery(producer, settings.request_timeout_seconds), report, stop, show)
    finally:
        report.ended_unix_seconds = time.time()
        await producer.stop()
    tell(report.line())
    for path in (json_file, folder and folder / SIMULATION):
        if path is not None:
            _write(report, path)
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
    plan: Plan, fleet: SimulatedFleet, delivery: SimulatedDelivery, report: Report, stop: asyncio.Event, show: Show
) -> None:
    samples = _Schedule(plan.agents, plan.interval_seconds)
    heartbeats = _Schedule(plan.agents, plan.heartbeat_interval_seconds)
    began = time.monotonic()
    async with delivery.delivering():
        while not stop.is_set():
            elapsed = time.monotonic() - began
            if plan.duration_seconds is not None and elapsed >= plan.duration_seconds:
                break
            for schedule, counts, topic, make in (
                (heartbeats, report.heartbeats, HEARTBEATS.name, fleet.heartbeat),
                (samples, report.samples, METRICS.name, fleet.metrics),
            ):
                for turn in schedule.due(elapsed):
                    late = schedule.behind(turn, time.monotonic() - began)
                    report.behind_seconds = max(report.behind_seconds, late)
                    agent = schedule.agent(turn)
                    await delivery.send(topic, make(agent), fleet.key(agent), counts)
            report.seconds = time.monotonic() - began
            show(report.seconds, report.brief())
            await asyncio.sleep(_TICK_SECONDS)
    report.seconds = time.monotonic() - began
