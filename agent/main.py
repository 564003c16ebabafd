"""The worker agent from start to stop: what runs, and in which order it ends.

system, gpu, engine ─▶ sampler ─▶ exporter ─▶ lane "metrics" ────┐
         └───────────▶ heartbeats ──────────▶ lane "heartbeats" ─┴─▶ Kafka, or the collector's HTTP door
"""

import asyncio
import contextlib
import ipaddress
import logging
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Final

import aiohttp
from prometheus_client import CollectorRegistry

from agent import gpu_sources, http, loops
from agent.engines.registry import ADAPTERS
from agent.engines.watch import EngineWatch
from agent.exporter import Exporter
from agent.footprint import keep_heap_small
from agent.heartbeats import HeartbeatMaker
from agent.identity import WorkerIdentity, identify
from agent.lanes import open_lanes
from agent.loops import Agent
from agent.otlp import OtlpExport
from agent.sampling import Sampler
from agent.signals import Signals
from agent.system import SystemReader
from agent.transport import KafkaTransport, Transport, http_transport
from fleetpulse.http import run_until_stopped, serving
from fleetpulse.settings import AgentSettings, ServiceSettings, SettingsError, StreamSettings, load
from fleetpulse.telemetry import RecentEvents, configure_logging, logger

_log = logger(__name__)

# With the limits in agent.loops this ends the agent within 5 s.
PRODUCER_END_SECONDS: Final = 2.0


async def run(settings: AgentSettings, stream: StreamSettings, stop: asyncio.Event) -> None:
    """Run the agent until ``stop`` is set; it ends within 5 s, with what is unsent on disk.

    Raises SettingsError for settings that cannot be used, and OSError when the port is taken.
    """
    keep_heap_small()
    identity = identify(settings)
    registry = CollectorRegistry()
    signals = Signals(registry)
    signals.identify(identity)
    async with contextlib.AsyncExitStack() as stack:
        recent = stack.enter_context(_recording(settings.log_events))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        transport = await stack.enter_async_context(_transport(settings, stream, identity, session))
        lanes = stack.enter_context(open_lanes(settings, identity, transport, signals))
        sampler = _sampler(settings, identity, signals)
        stack.push_async_callback(sampler.stop)
        maker = HeartbeatMaker(identity, settings.heartbeat_interval_seconds)
        engine = _engine(settings, sampler, session)
        otlp = OtlpExport(settings.otlp_endpoint, signals) if settings.otlp_endpoint else None
        agent = Agent(settings, sampler, maker, lanes, transport, signals, engine, otlp)
        registry.register(http.ReadingsCollector(sampler.latest, sampler.gpus))
        application = http.application(registry, recent, agent.lacking)
        port = await stack.enter_async_context(serving(application, settings.host, settings.port))
        maker.agent_url = settings.advertised_url or _url(settings.host, port, identity.host_name)
        _log.info(
            "agent started",
            extra={"worker_id": identity.worker_id, "boot_id": identity.boot_id, "url": maker.agent_url},
        )
        async with loops.delivering(agent):
            await loops.make_until_stopped(agent, stop)
            agent.beat("draining")
    _log.info("agent stopped", extra={"worker_id": identity.worker_id})


@contextlib.asynccontextmanager
async def _transport(
    settings: AgentSettings, stream: StreamSettings, identity: WorkerIdentity, session: aiohttp.ClientSession
) -> AsyncIterator[Transport]:
    if settings.transport == "http":
        yield http_transport(settings, session)
        return
    # Imported here: an agent behind the HTTP door has no use for a Kafka client.
    from fleetpulse.stream.producer import StreamProducer

    producer = StreamProducer(stream, client_id=f"fleetpulse-agent-{identity.worker_id}")
    await producer.start()
    try:
        yield KafkaTransport(producer, identity.worker_id, identity.instance_id)
    finally:
        try:
            async with asyncio.timeout(PRODUCER_END_SECONDS):
                await producer.stop()
        except TimeoutError:
            _log.warning("the Kafka client did not end in time")


def _sampler(settings: AgentSettings, identity: WorkerIdentity, signals: Signals) -> Sampler:
    system = SystemReader()
    exporter = Exporter(identity.resource_attributes(), identity.agent_version, system.boot_unix_nano, time.time_ns())
    gpus = gpu_sources.choose(settings, identity.worker_id)
    return Sampler(system, gpus, exporter, signals, settings.sample_interval_seconds)


def _engine(settings: AgentSettings, sampler: Sampler, session: aiohttp.ClientSession) -> EngineWatch | None:
    if settings.engine == "none":
        return None
    watch = EngineWatch(ADAPTERS[settings.engine], settings, session)
    sampler.latest.engine = watch.latest
    return watch


@contextlib.contextmanager
def _recording(most: int) -> Iterator[RecentEvents]:
    """Keep the newest log events of the agent for /logs."""
    recent = RecentEvents(most)
    ours = logging.getLogger("fleetpulse")
    ours.addHandler(recent)
    try:
        yield recent
    finally:
        ours.removeHandler(recent)


def _url(host: str, port: int, host_name: str) -> str:
    """An address that stands for all of them is of no use to others; the host's name may be."""
    try:
        anywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        anywhere = not host
    name = host_name if anywhere else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def main() -> int:
    """Run by the environment's settings until SIGTERM or Ctrl-C. Returns the exit code: 2 for wrong settings."""
    try:
        configure_logging(load(ServiceSettings))
        settings, stream = load(AgentSettings), load(StreamSettings)
        asyncio.run(run_until_stopped(lambda stop: run(settings, stream, stop)))
    except SettingsError as error:
        print(f"fleetpulse agent: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"fleetpulse agent: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
