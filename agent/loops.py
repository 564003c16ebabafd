"""The agent's loops: what makes messages, and what delivers them until the makers have ended."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.delivery import Lane
from agent.encoder import Encoder
from agent.engines.watch import EngineWatch
from agent.heartbeats import HeartbeatMaker, load_of, status_of
from agent.otlp import OtlpExport
from agent.sampling import Sampler, own_measurements
from agent.schedule import ticks
from agent.signals import Signals
from agent.transport import Kind, Transport
from fleetpulse.settings import AgentSettings
from fleetpulse.stream import heartbeat
from fleetpulse.stream.heartbeat import WorkerStatus

# By then everything has run once that goes on running.
SETTLED_SAMPLES: Final = 2
# The engine is asked this long before each heartbeat, so that its queue is told fresh; and CPU utilisation needs
# some time to have passed before the first sample.
ENGINE_LEAD_SECONDS: Final = 0.1
FIRST_SAMPLE_SECONDS: Final = 0.5
# Together with the driver's limit and the producer's these end the agent within 5 s.
MAKERS_END_SECONDS: Final = 0.5
FLUSH_SECONDS: Final = 0.7


@dataclass(slots=True)
class Agent:
    """The parts that the loops share."""

    settings: AgentSettings
    sampler: Sampler
    heartbeats: HeartbeatMaker
    lanes: Mapping[Kind, Lane]
    transport: Transport
    signals: Signals
    engine: EngineWatch | None
    otlp: OtlpExport | None
    encoder: Encoder = field(default_factory=Encoder)

    def lacking(self) -> dict[str, str]:
        """What keeps the agent from its work, for /readyz."""
        parts = {}
        if not self.transport.connected:
            parts["stream"] = "not connected to the broker; messages are spooled"
        if not self.sampler.latest.sampled:
            parts["sample"] = "no sample taken yet"
        return parts

    def beat(self, status: WorkerStatus | None = None) -> None:
        """Make one heartbeat of what is known now and hand it over."""
        latest = self.sampler.latest
        message = self.heartbeats.make(
            status or status_of(latest.engine, latest.engine_was_ready, latest.gpus),
            latest.engine,
            load_of(self.sampler.host_load(), latest.gpus),
        )
        self.lanes["heartbeats"].submit(heartbeat.encode(message))
        self.signals.heartbeats.inc()

    async def sample(self) -> None:
        """Take one sample and hand it over."""
        spools = [lane.spool for lane in self.lanes.values()]
        own = own_measurements(self.heartbeats.made, sum(s.size_bytes for s in spools), sum(s.dropped for s in spools))
        message = await self.sampler.sample(own)
        self.lanes["metrics"].submit(self.encoder.encode(message))
        if self.otlp is not None:
            self.otlp.submit(message)


async def make_until_stopped(agent: Agent, stop: asyncio.Event) -> None:
    """Everything that makes messages. Any of these that fails ends the agent."""
    async with asyncio.TaskGroup() as group:
        makers = [
            group.create_task(_beat(agent, stop), name="heartbeats"),
            group.create_task(_sample(agent, stop), name="samples"),
        ]
        if agent.engine is not None:
            makers.append(group.create_task(_poll(agent, agent.engine, stop), name="engine"))
        await stop.wait()
        await asyncio.wait(makers, timeout=MAKERS_END_SECONDS)
        for maker in makers:
            maker.cancel()


async def _beat(agent: Agent, stop: asyncio.Event) -> None:
    async for _ in ticks(agent.settings.heartbeat_interval_seconds, stop, ENGINE_LEAD_SECONDS):
        agent.beat()


async def _sample(agent: Agent, stop: asyncio.Event) -> None:
    await agent.sampler.start()
    async for _ in ticks(agent.settings.sample_interval_seconds, stop, FIRST_SAMPLE_SECONDS):
        await agent.sample()
        if agent.sampler.exporter.exported == SETTLED_SAMPLES:
            await agent.sampler.settle()


async def _poll(agent: Agent, engine: EngineWatch, stop: asyncio.Event) -> None:
    latest = agent.sampler.latest
    async for _ in ticks(agent.settings.heartbeat_interval_seconds, stop):
        latest.engine = await engine.poll()
        latest.engine_was_ready |= latest.engine.state == "ready"
        agent.signals.engine_polls.labels(latest.engine.state).inc()


@contextlib.asynccontextmanager
async def delivering(agent: Agent) -> AsyncIterator[None]:
    """Delivery outlives the makers, by FLUSH_SECONDS at most."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(lane.run(), name=f"lane-{kind}") for kind, lane in agent.lanes.items()]
        if agent.otlp is not None:
            tasks.append(group.create_task(agent.otlp.run(), name="otlp"))
        try:
            yield
            await _flush(agent)
        finally:
            for task in tasks:
                task.cancel()
    if agent.otlp is not None:
        await agent.otlp.stop()


async def _flush(agent: Agent) -> None:
    deadline = time.monotonic() + FLUSH_SECONDS
    while agent.transport.connected and time.monotonic() < deadline:
        if not any(lane.unsent for lane in agent.lanes.values()):
            return
        await asyncio.sleep(0.01)
