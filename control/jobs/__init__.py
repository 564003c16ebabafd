"""Control's jobs: each module here is one, ``framework`` is how they are run. See docs/jobs.md.

A module with a function ``job(settings)`` is a job of rows that are claimed; the worker watchdog is a loop of its own.
"""

import asyncio
import importlib
import pkgutil
from collections.abc import Mapping, Sequence

import aiohttp
from prometheus_client import CollectorRegistry

from control.database import Database
from control.jobs.framework.context import JobContext
from control.jobs.framework.environment import worker_environment
from control.jobs.framework.guard import Guard
from control.jobs.framework.inventories import Inventories
from control.jobs.framework.job import Job
from control.jobs.framework.metrics import JobMetrics
from control.jobs.framework.probes import Probes
from control.jobs.framework.runner import Runner
from control.jobs.worker_watchdog import WorkerWatchdog
from control.lifecycle.outbox import OutboxMetrics, Publisher, listen
from control.providers.interface import Provider
from fleetpulse.settings import DatabaseSettings, JobSettings, StreamSettings
from fleetpulse.stream.consumer import StreamReader
from fleetpulse.stream.fleet_view import FleetView
from fleetpulse.stream.producer import StreamProducer

__all__ = ["JobContext", "all_jobs", "run_jobs"]

CLIENT_ID = "fleetpulse-control-lifecycle"


def all_jobs(settings: JobSettings) -> Sequence[Job]:
    """The jobs of rows, by the names of their modules."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.ispkg)
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return [module.job(settings) for module in modules if hasattr(module, "job")]


async def run_jobs(
    database: Database,
    view: FleetView,
    reader: StreamReader,
    providers: Mapping[str, Provider],
    settings: JobSettings,
    registry: CollectorRegistry,
    *,
    stream: StreamSettings,
    database_settings: DatabaseSettings,
) -> None:
    """All jobs, and the publisher of lifecycle messages, until cancelled; with or without database and broker.

    Raises SettingsError for a worker environment that cannot be used.
    """
    metrics = JobMetrics(registry)
    producer = StreamProducer(stream, CLIENT_ID)
    hint = asyncio.Event()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        context = JobContext(
            database=database,
            view=view,
            providers=providers,
            settings=settings,
            worker_environment=worker_environment(settings, stream),
            guard=Guard(view, reader, metrics),
            probes=Probes(settings, session),
            inventories=Inventories(database, providers, settings),
            metrics=metrics,
        )
        await producer.start()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(Runner(context, all_jobs(settings)).run(), name="jobs")
                group.create_task(WorkerWatchdog(context).run(), name="worker-watchdog")
                publisher = Publisher(database, producer, OutboxMetrics(registry))
                group.create_task(publisher.run(hint), name="lifecycle-publisher")
                group.create_task(listen(database_settings, hint), name="lifecycle-hints")
        finally:
            await producer.stop()
