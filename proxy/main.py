"""The proxy: what runs, in the order in which a request goes.

client ──▶ front ──▶ authenticate ──▶ resolve ──▶ select ──▶ relay ──▶ engine
                          │               │          │          └──▶ account ──▶ fleetpulse.usage
PostgreSQL ──▶ access ────┴───────────────┘          │
heartbeats, lifecycle messages ──▶ fleet ────────────┘
"""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from fleetpulse.http import add_health_endpoints, serving
from fleetpulse.settings import DatabaseSettings, ProxySettings, StreamSettings
from fleetpulse.stream.consumer import StreamReader
from fleetpulse.stream.fleet_view import FleetRules, FleetView
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import HEARTBEATS, LIFECYCLE, USAGE
from fleetpulse.telemetry import logger
from proxy.access_reader import Access
from proxy.account import Account, outcome
from proxy.call import Call
from proxy.fleet import Fleet
from proxy.follow import follow, follow_usage, look_after
from proxy.front import Front
from proxy.handler import Handler
from proxy.limits import Limits
from proxy.listen import Listener, listen
from proxy.metrics import ProxyMetrics, StateCollector
from proxy.pipeline import Pipeline
from proxy.relay.attempts import Attempt, Attempts
from proxy.relay.connection import SWEEP_SECONDS, Pool
from proxy.relay.outbox import Outbox
from proxy.request_log import RequestLog
from proxy.spool import Spool

_log = logger(__name__)

CLIENT_ID = "fleetpulse-proxy"
# For the usage records of the last requests, once these are over.
FLUSH_SECONDS = 5.0
DRAIN_LOOK_SECONDS = 0.05
# Heartbeats come once a second; a fifth of that more is not noticed.
FETCH_PACE_SECONDS = 0.2
BUDGET_LOOK_SECONDS = 0.5


@dataclass(slots=True)
class Parts:
    """What the proxy is made of."""

    registry: CollectorRegistry
    fleet: Fleet
    access: Access
    pool: Pool
    limits: Limits
    spool: Spool
    account: Account
    metrics: ProxyMetrics
    reader: StreamReader
    is_draining: bool = False

    def lacking(self) -> dict[str, str]:
        """What keeps the proxy from its work, for /readyz."""
        missing = {}
        if self.access.lacking is not None:
            missing["access"] = self.access.lacking
        # Once the fleet is known, the last known good holds without a broker.
        if not self.reader.connected and not len(self.fleet):
            missing["stream"] = "not connected to the broker"
        if self.is_draining:
            missing["proxy"] = "draining"
        return missing


async def run(
    settings: ProxySettings,
    stream: StreamSettings,
    database: DatabaseSettings,
    stop: asyncio.Event,
    process: int | None = None,
) -> None:
    """Serve until ``stop`` is set, then finish what is under way.

    ``process`` is this one's number among several that share the port; each then has a metrics port of its own. Raises
    OSError when a port is taken.
    """
    producer = StreamProducer(stream, f"{CLIENT_ID}-usage")
    async with contextlib.AsyncExitStack() as stack:
        parts = await _parts(settings, stream, producer, stack)
        pipeline = _pipeline(settings, parts)
        await producer.start()
        stack.push_async_callback(producer.stop)
        parts.spool.load(settings.usage_dir)
        if process is not None:
            own = web.Application()
            add_health_endpoints(own, parts.registry, parts.lacking)
            await stack.enter_async_context(serving(own, settings.host, settings.metrics_port + process))
        handler = Handler(pipeline, other=lambda http, path: _health(http, path, parts))
        front = Front(handler.handle, pipeline, settings, parts.metrics.malformed.inc)
        stack.push_async_callback(pipeline.attempts.close)
        listener = await listen(front, settings.host, settings.port, shared=process is not None)
        _log.info("proxy started", extra={"host": settings.host, "port": listener.port})
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in _background(settings, stream, database, parts, front)]
            await stop.wait()
            await _drain(settings, parts, pipeline, listener, front)
            for task in tasks:
                task.cancel()
        await parts.spool.flush(FLUSH_SECONDS if producer.connected else 0.1)
        parts.spool.save(settings.usage_dir)
        pipeline.log.flush()
        parts.pool.close()
    _log.info("proxy stopped")


async def _parts(
    settings: ProxySettings, stream: StreamSettings, producer: StreamProducer, stack: contextlib.AsyncExitStack
) -> Parts:
    registry = CollectorRegistry()
    view = FleetView(replace(FleetRules(), stale_after_seconds=stream.stale_after_seconds))
    fleet = Fleet(view, settings.engine_stalled_seconds)
    limits = Limits()
    spool = Spool(producer, settings.usage_records_kept, registry)
    reader = await stack.enter_async_context(
        StreamReader(
            stream,
            [HEARTBEATS.name, LIFECYCLE.name],
            CLIENT_ID,
            from_start=[LIFECYCLE.name],
            pace_seconds=FETCH_PACE_SECONDS,
        )
    )
    parts = Parts(
        registry=registry,
        fleet=fleet,
        access=Access(),
        pool=Pool(settings.engine_idle_seconds, settings.engine_connections_idle, settings.connect_timeout_seconds),
        limits=limits,
        spool=spool,
        account=Account(spool, limits),
        metrics=ProxyMetrics(registry),
        reader=reader,
    )
    registry.register(StateCollector(fleet, reader, parts.access, parts.pool))
    return parts


def _pipeline(settings: ProxySettings, parts: Parts) -> Pipeline:
    def told(call: Call, attempt: Attempt) -> None:
        parts.metrics.attempted(outcome(attempt))
        parts.account.book(call, attempt)

    pipeline = Pipeline(
        settings=settings,
        access=parts.access,
        limits=parts.limits,
        attempts=Attempts(settings, parts.fleet, parts.pool, told, parts.metrics.ejections.inc),
        metrics=parts.metrics,
        log=RequestLog(settings.request_log),
        outbox=Outbox(asyncio.get_running_loop()),
    )
    parts.metrics.in_flight.set_function(lambda: pipeline.in_flight)
    return pipeline


def _background(
    settings: ProxySettings, stream: StreamSettings, database: DatabaseSettings, parts: Parts, front: Front
) -> Iterator[Coroutine[Any, Any, None]]:
    yield parts.access.keep(database, settings.access_poll_seconds)
    yield follow(parts.reader, parts.fleet, parts.metrics)
    yield _follow_usage(stream, parts)
    yield look_after(parts.fleet)
    yield parts.spool.send()
    yield _sweep(parts.pool, front)


async def _follow_usage(stream: StreamSettings, parts: Parts) -> None:
    """What was used before this start, and by other processes, is of interest once there is a key with a budget."""
    while not parts.access.snapshot.has_budgets:  # noqa: ASYNC110
        await asyncio.sleep(BUDGET_LOOK_SECONDS)
    async with StreamReader(
        stream,
        [USAGE.name],
        f"{CLIENT_ID}-budgets",
        from_start=[USAGE.name],
        pace_seconds=FETCH_PACE_SECONDS,
    ) as reader:
        await follow_usage(reader, parts.limits, parts.account.boot, parts.metrics)


async def _sweep(pool: Pool, front: Front) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        pool.sweep(time.monotonic())
        front.sweep(time.monotonic())


async def _drain(settings: ProxySettings, parts: Parts, pipeline: Pipeline, listener: Listener, front: Front) -> None:
    """Take no more connections, let requests finish, then close what is left."""
    parts.is_draining = True
    listener.close()
    # Each connection ends after the request it has, idle ones now.
    front.pre_shutdown()
    deadline = time.monotonic() + settings.drain_seconds
    while pipeline.in_flight and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(DRAIN_LOOK_SECONDS)
    if pipeline.in_flight:
        _log.warning("requests cut off", extra={"requests": pipeline.in_flight})
        for worker in parts.fleet.workers():
            for lease in tuple(worker.leases):
                lease.cut_off()
        await asyncio.sleep(DRAIN_LOOK_SECONDS)
    await front.shutdown(0.1)


def _health(http: web.BaseRequest, path: str, parts: Parts) -> web.Response | None:
    """The endpoints that every service has, on the port of the API."""
    if path == "/healthz":
        return web.json_response({"status": "ok"})
    if path == "/readyz":
        lacking = parts.lacking()
        status = {"status": "unready", "missing": lacking} if lacking else {"status": "ready"}
        return web.json_response(status, status=503 if lacking else 200)
    if path == "/metrics":
        encode, content_type = choose_encoder(http.headers.get("Accept", ""))
        return web.Response(body=encode(parts.registry), headers={"Content-Type": content_type})
    return None
