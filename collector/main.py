"""The collector: stream → decode → validate → batch → one transaction."""

import asyncio
import os
import secrets
import socket

from aiohttp import web

from collector.door import Door
from collector.ingest import Ingest
from collector.lag_hint import tell_offsets
from collector.metrics import CollectorMetrics
from collector.staleness import Staleness
from collector.upkeep import keep_up
from fleetpulse.database import DatabaseError, Profile, prepare
from fleetpulse.http import add_health_endpoints, require_strict_parser, serving
from fleetpulse.settings import CollectorSettings, DatabaseSettings, StreamSettings
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.tasks import end
from fleetpulse.telemetry import logger

_log = logger(__name__)


class Collector:
    """The parts of one collector process and what they still lack."""

    def __init__(self, settings: CollectorSettings, stream: StreamSettings, database: DatabaseSettings) -> None:
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.metrics = CollectorMetrics()
        self.producer = StreamProducer(stream, self.owner)
        self.ingest: Ingest | None = None
        self._settings, self._stream, self._database = settings, stream, database
        self._staleness = Staleness(stream.stale_after_seconds, self.metrics)
        self._problem: str | None = "database not prepared yet"

    def problem(self) -> str | None:
        """Why nothing is written at present."""
        return self.ingest.problem if self.ingest is not None else self._problem

    def missing(self) -> dict[str, str]:
        """What keeps the collector from its work, for ``/readyz``."""
        problem = self.problem()
        return {"ingest": problem} if problem else {}

    def application(self) -> web.Application:
        """The HTTP side: health, metrics and the door."""
        application = web.Application(client_max_size=self._settings.message_bytes)
        add_health_endpoints(application, self.metrics.registry, self.missing)
        door = Door(self.producer, self._settings.worker_tokens, self._settings.message_bytes, self.metrics)
        door.add_routes(application)
        return application

    async def work(self, stop: asyncio.Event) -> None:
        """Ingest until ``stop`` is set."""
        profile = await self._prepare(stop)
        if profile is None:
            return
        self.ingest = Ingest(
            self._settings,
            self._stream,
            self._database,
            owner=self.owner,
            marks_dirty=profile == "postgres",
            metrics=self.metrics,
            producer=self.producer,
            heard=self._staleness.heard,
        )
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(self._staleness.run(self.problem), name="collector-staleness"),
                tasks.create_task(tell_offsets(self._stream, self.owner, self.ingest.committed), name="collector-lag"),
                tasks.create_task(
                    keep_up(self._settings, self._database, profile, self.metrics), name="collector-upkeep"
                ),
            ]
            await self.ingest.run(stop)
            for task in background:
                task.cancel()

    async def _prepare(self, stop: asyncio.Event) -> Profile | None:
        """Bring the database up to date, waiting for it as long as it takes; None when stopped meanwhile."""
        stopping = asyncio.create_task(stop.wait(), name="collector-stop")
        try:
            while not stop.is_set():
                preparing = asyncio.create_task(prepare(self._database), name="collector-prepare")
                try:
                    await asyncio.wait({preparing, stopping}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    # Also when we are cancelled: nobody else knows of it.
                    preparing.cancel()
                    await asyncio.wait({preparing})
                if preparing.cancelled():
                    return None
                try:
                    return preparing.result()
                except DatabaseError as error:
                    if str(error) != self._problem:
                        _log.error("database cannot be used, trying again", extra={"error": str(error)})
                    self._problem = str(error)
                await asyncio.wait({stopping}, timeout=self._database.connect_timeout_seconds)
            return None
        finally:
            await end(stopping)


async def run(
    settings: CollectorSettings, stream: StreamSettings, database: DatabaseSettings, stop: asyncio.Event
) -> None:
    """Run until ``stop`` is set. Broker and database may come and go; what is missing is said at ``/readyz``.

    Raises SettingsError without aiohttp's compiled parser, and OSError when the port is taken.
    """
    require_strict_parser()
    collector = Collector(settings, stream, database)
    await collector.producer.start()
    try:
        async with serving(collector.application(), settings.host, settings.port) as port:
            _log.info("collector listening", extra={"host": settings.host, "port": port, "owner": collector.owner})
            await collector.work(stop)
    finally:
        await collector.producer.stop()
