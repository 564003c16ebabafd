"""From the outbox to the stream: lifecycle messages in order for each instance, by one control process at a time.

A publisher that is killed between sending and deleting leaves its rows to the next one, which sends them again: readers
go by a message's version, so a repeat is harmless.
"""

import asyncio
import itertools
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import psycopg
from prometheus_client import CollectorRegistry, Counter, Gauge

from control.database import Database, UnavailableError
from control.lifecycle.message import CHANNEL
from fleetpulse.database import DatabaseError
from fleetpulse.database.connect import connect
from fleetpulse.settings import DatabaseSettings
from fleetpulse.stream.errors import NotDeliveredError
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import LIFECYCLE
from fleetpulse.telemetry import logger

_log = logger(__name__)

POLL_SECONDS: Final = 1.0
BATCH_MESSAGES: Final = 500
LEASE_SECONDS: Final = 15.0
# No message is begun later than this after the lease was taken, so that hardly one is under way when it ends.
BEGIN_SECONDS: Final = 5.0

_PENDING: Final = """
SELECT count(*), coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8
FROM (SELECT created_at FROM lifecycle_outbox ORDER BY outbox_id LIMIT 10000) AS oldest
"""
_LEASE: Final = """
UPDATE lifecycle_publisher
SET owner = %(owner)s, token = token + 1, lease_until = clock_timestamp() + %(seconds)s * interval '1 second'
WHERE owner IS NULL OR owner = %(owner)s OR lease_until < clock_timestamp()
RETURNING token
"""
_READ: Final = "SELECT outbox_id, instance_id, message FROM lifecycle_outbox ORDER BY outbox_id LIMIT %(most)s"
_FENCE: Final = "UPDATE lifecycle_publisher SET owner = NULL, lease_until = NULL WHERE token = %s"
_DELETE: Final = "DELETE FROM lifecycle_outbox WHERE outbox_id = ANY(%s)"


@dataclass(frozen=True, slots=True)
class _Row:
    outbox_id: int
    instance_id: str
    message: bytes | None


class OutboxMetrics:
    """What waits and what went out."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.published = Counter(
            "fleetpulse_control_lifecycle_messages_published_total",
            "Lifecycle messages that the broker has acknowledged, tombstones included",
            registry=registry,
        )
        self.failures = Counter(
            "fleetpulse_control_lifecycle_publish_failures_total",
            "Passes over the outbox that ended early: broker or database away",
            registry=registry,
        )
        self.pending = Gauge(
            "fleetpulse_control_lifecycle_outbox_messages", "Lifecycle messages not yet published", registry=registry
        )
        self.age_seconds = Gauge(
            "fleetpulse_control_lifecycle_outbox_age_seconds",
            "Age of the oldest lifecycle message not yet published",
            registry=registry,
        )


class Publisher:
    """Empties the outbox into the lifecycle topic."""

    def __init__(self, database: Database, producer: StreamProducer, metrics: OutboxMetrics) -> None:
        self._database = database
        self._producer = producer
        self._metrics = metrics
        self._owner = secrets.token_hex(8)
        self._waiting_for: str | None = None

    async def run(self, hint: asyncio.Event) -> None:
        """For ever: a pass at each hint, and every POLL_SECONDS in any case."""
        while True:
            hint.clear()
            if await self.publish() < BATCH_MESSAGES:
                try:
                    await asyncio.wait_for(hint.wait(), POLL_SECONDS)
                except TimeoutError:
                    continue

    async def publish(self) -> int:
        """One pass; returns how many messages were published. An outage ends it early, and is told once."""
        try:
            sent = await self._pass()
        except (UnavailableError, NotDeliveredError) as error:
            self._metrics.failures.inc()
            if self._waiting_for is None:
                _log.warning("lifecycle messages wait", extra={"reason": str(error)})
            self._waiting_for = str(error)
            return 0
        if self._waiting_for is not None and sent:
            _log.info("lifecycle messages go out again")
            self._waiting_for = None
        return sent

    async def _pass(self) -> int:
        ((pending, age_seconds),) = await self._database.rows(_PENDING)
        self._metrics.pending.set(pending)
        self._metrics.age_seconds.set(age_seconds)
        if not pending:
            return 0
        begin_until = time.monotonic() + BEGIN_SECONDS
        async with self._database.transaction() as connection:
            cursor = await connection.execute(_LEASE, {"owner": self._owner, "seconds": LEASE_SECONDS})
            lease = await cursor.fetchone()
        if lease is None:
            return 0
        rows = [_Row(*row) for row in await self._database.rows(_READ, {"most": BATCH_MESSAGES})]
        sent, failure = await self._send(rows, begin_until)
        async with self._database.transaction() as connection:
            # Who lost the lease leaves the rows to the new owner, who is sending them too.
            if (await connection.execute(_FENCE, (lease[0],))).rowcount:
                await connection.execute(_DELETE, (sent,))
        self._metrics.published.inc(len(sent))
        if failure is not None:
            raise failure
        return len(sent)

    async def _send(self, rows: Sequence[_Row], begin_until: float) -> tuple[list[int], NotDeliveredError | None]:
        """The rows that the broker has, and why it lacks others. Instances side by side, each one's rows in order."""
        by_instance = sorted(rows, key=lambda row: row.instance_id)
        chains = [list(group) for _, group in itertools.groupby(by_instance, key=lambda row: row.instance_id)]
        sent: list[int] = []
        failures: list[NotDeliveredError] = []

        async def send_chain(chain: list[_Row]) -> None:
            for row in chain:
                if failures or time.monotonic() > begin_until:
                    return
                try:
                    await self._producer.send(LIFECYCLE.name, row.message, key=row.instance_id.encode())
                except NotDeliveredError as error:
                    failures.append(error)
                    return
                sent.append(row.outbox_id)

        async with asyncio.TaskGroup() as group:
            for chain in chains:
                group.create_task(send_chain(chain))
        return sent, failures[0] if failures else None


async def listen(settings: DatabaseSettings, hint: asyncio.Event) -> None:
    """Set ``hint`` whenever a message was put into the outbox, for ever. Without a database nothing is heard."""
    while True:
        try:
            connection = await connect(settings, "fleetpulse-control-outbox")
            async with connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                async for _ in connection.notifies():
                    hint.set()
        except (DatabaseError, psycopg.Error) as error:
            _log.debug("no hints of lifecycle messages", extra={"error": repr(error)})
        await asyncio.sleep(POLL_SECONDS)
