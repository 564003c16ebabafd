"""What the database knows about workers, and whether it answers at all."""

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from control.database import Database, UnavailableError
from control.probe import Probe
from fleetpulse.database import DatabaseError, prepare
from fleetpulse.settings import DatabaseSettings, SettingsError
from fleetpulse.stream.fleet_view import FleetView
from fleetpulse.telemetry import logger

_log = logger(__name__)

PROBE_SECONDS: Final = 1.0
REFRESH_SECONDS: Final = 30.0

# The newest instance of each worker that has not ended, and how long ago its last message was stored. A worker that
# sends metrics but no heartbeats (a stock OpenTelemetry collector) has the age of its last system sample; greatest()
# ignores nulls.
IDENTITIES: Final = """
SELECT
    newest.worker_id,
    newest.instance_id,
    newest.host_name,
    newest.first_seen_at,
    extract(epoch FROM now() - greatest(
        (SELECT max(h.time) FROM heartbeats AS h WHERE h.worker_key = newest.worker_key),
        (SELECT max(s.time) FROM system_samples AS s WHERE s.worker_key = newest.worker_key),
        newest.first_seen_at
    ))::float8
FROM (
    SELECT DISTINCT ON (worker_id) worker_id, worker_key, instance_id, host_name, first_seen_at
    FROM workers
    WHERE NOT EXISTS (
        SELECT FROM instances AS i
        WHERE i.instance_id = workers.instance_id AND i.state IN ('terminated', 'archived')
    )
    ORDER BY worker_id, worker_key DESC
) AS newest
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """A worker's row in the database."""

    host_name: str | None
    first_seen_at: datetime


class Directory:
    """Identities by instance id, read now and then; what was read stays while the database is away."""

    def __init__(self) -> None:
        self._identities: dict[str, Identity] = {}

    def get(self, instance_id: str) -> Identity | None:
        """What the database knows about an instance."""
        return self._identities.get(instance_id)

    async def refresh(self, database: Database, view: FleetView) -> None:
        """Read all identities and tell the view of workers it may not have heard. Raises UnavailableError."""
        rows = await database.rows(IDENTITIES)
        now = time.monotonic()
        for worker_id, instance_id, _, _, seconds_ago in rows:
            view.know(worker_id, instance_id, now, seconds_ago)
        self._identities = {row[1]: Identity(host_name=row[2], first_seen_at=row[3]) for row in rows}


async def keep(settings: DatabaseSettings, database: Database, directory: Directory, view: FleetView) -> None:
    """Prepare the schema once the database is there, then watch that it answers, until cancelled."""
    prepared = False
    reading: asyncio.Task[float] | None = None
    async with Probe(settings) as probe, asyncio.TaskGroup() as tasks:
        while True:
            try:
                await probe.ask()
                if not prepared:
                    await prepare(settings)
                    prepared = True
                database.accept()
            except (UnavailableError, DatabaseError, SettingsError) as error:
                database.refuse(str(error))
            else:
                # Nobody waits for it: it may last, and an outage is to be seen meanwhile.
                if reading is None or (reading.done() and time.monotonic() - reading.result() >= REFRESH_SECONDS):
                    reading = tasks.create_task(_read(directory, database, view), name="directory")
            await asyncio.sleep(PROBE_SECONDS)


async def _read(directory: Directory, database: Database, view: FleetView) -> float:
    """When the directory was read, in monotonic seconds: never, if it could not be. A busy pool or a slow query is no
    outage."""
    try:
        await directory.refresh(database, view)
    except UnavailableError as error:
        _log.warning("workers not read from the database", extra={"reason": str(error)})
        return float("-inf")
    return time.monotonic()
