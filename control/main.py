"""The control service: what runs, in the order in which data flows.

heartbeats ──▶ follower ──▶ FleetView ──▶ /workers
PostgreSQL ──▶ directory ──────┘
     └───────▶ access ──▶ every endpoint: deployments, instances, activity, …
lifecycle messages ──▶ events ──▶ /events
FleetView, PostgreSQL, providers ──▶ jobs ──▶ instances ──▶ lifecycle messages
"""

import asyncio
import contextlib
from dataclasses import replace

from prometheus_client import CollectorRegistry

from control.access import admission
from control.access.admission import Admission
from control.access.attempts import Attempts
from control.access.listener import listen
from control.api.application import application
from control.api.call import Parts
from control.api.event_log import EventLog
from control.api.event_sources import follow_lifecycle, watch_workers
from control.database import Database
from control.directory import Directory, keep
from control.follower import follow
from control.jobs import run_jobs
from control.jobs.framework.environment import worker_environment
from control.metrics import HeartbeatMetrics, StateCollector
from control.providers import registry as providers
from fleetpulse.database import retention
from fleetpulse.http import require_strict_parser, serving
from fleetpulse.settings import ControlSettings, DatabaseSettings, JobSettings, StreamSettings
from fleetpulse.stream.consumer import StreamReader
from fleetpulse.stream.fleet_view import FleetRules, FleetView
from fleetpulse.stream.topics import HEARTBEATS, LIFECYCLE
from fleetpulse.telemetry import logger

_log = logger(__name__)

CLIENT_ID = "fleetpulse-control"


async def run(
    settings: ControlSettings,
    jobs: JobSettings,
    stream: StreamSettings,
    database_settings: DatabaseSettings,
    stop: asyncio.Event,
) -> None:
    """Serve and keep the fleet in order until ``stop`` is set, with or without database and broker.

    Raises SettingsError for settings that cannot be used, and OSError when the port is taken.
    """
    require_strict_parser()
    admission.check(settings)
    worker_environment(jobs, stream)
    retention.check(database_settings)
    registry = CollectorRegistry()
    view = FleetView(replace(FleetRules(), stale_after_seconds=stream.stale_after_seconds))
    directory = Directory()
    async with contextlib.AsyncExitStack() as stack:
        machines = await stack.enter_async_context(providers.opened(settings.providers))
        database = await stack.enter_async_context(Database(settings, database_settings))
        reader = await stack.enter_async_context(StreamReader(stream, [HEARTBEATS.name], CLIENT_ID))
        # A reader of its own: the heartbeats' lag must stay the heartbeats'.
        lifecycle = await stack.enter_async_context(StreamReader(stream, [LIFECYCLE.name], f"{CLIENT_ID}-events"))
        registry.register(StateCollector(view, reader, database))
        parts = Parts(
            settings=settings,
            retention=database_settings,
            database=database,
            directory=directory,
            view=view,
            reader=reader,
            admission=Admission(settings, database),
            attempts=Attempts(settings.login_attempts, settings.login_window_seconds),
            events=EventLog(settings.events_kept),
            jobs=jobs,
        )
        app = application(parts, registry, lambda: lacking(database, reader))
        port = await stack.enter_async_context(serving(app, settings.host, settings.port))
        _log.info("control started", extra={"host": settings.host, "port": port})
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(follow(reader, view, HeartbeatMetrics(registry)), name="follower"),
                group.create_task(keep(database_settings, database, directory, view), name="directory"),
                group.create_task(listen(database_settings, parts.admission), name="access"),
                group.create_task(follow_lifecycle(lifecycle, parts.events), name="events"),
                group.create_task(watch_workers(view, parts.events), name="worker events"),
                group.create_task(
                    run_jobs(
                        database,
                        view,
                        reader,
                        machines,
                        jobs,
                        registry,
                        stream=stream,
                        database_settings=database_settings,
                    ),
                    name="jobs",
                ),
            ]
            await stop.wait()
            for task in tasks:
                task.cancel()
    _log.info("control stopped")


def lacking(database: Database, reader: StreamReader) -> dict[str, str]:
    """What keeps control from its work, for /readyz."""
    parts = {}
    if database.lacking is not None:
        parts["database"] = database.lacking
    if not reader.connected:
        parts["stream"] = "not connected to the broker"
    return parts
