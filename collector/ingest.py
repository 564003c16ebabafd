"""The loop from stream to database: fetch, decode, validate, write; one transaction at a time, the next one being
prepared meanwhile.

There is one way back from every error: drop what is in flight, ask the database which partitions are ours and where
they stand, and read from there.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import psycopg
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from collector import offsets
from collector.collect import Intake, fill, position_rows, take_in
from collector.database_thread import DatabaseThread
from collector.deadletter import bury, by_reason
from collector.decode import Decoder
from collector.directory import Directory
from collector.duplicates import Position, ProducerKey, stored_position
from collector.encode import Encoded, encode
from collector.metrics import CollectorMetrics
from collector.offsets import Claim, FencedError
from collector.ownership import Ownership
from collector.source import Gap, Source, StreamStalledError
from collector.validate import TimeLimits
from collector.write import Writer, WriteSet
from fleetpulse.database.relations import USAGE as USAGE_RELATION
from fleetpulse.settings import CollectorSettings, DatabaseSettings, StreamSettings
from fleetpulse.stream.admin import TopicError, ensure_topics
from fleetpulse.stream.consumer import Record
from fleetpulse.stream.errors import NotDeliveredError
from fleetpulse.stream.heartbeat import Heartbeat
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import HEARTBEATS, METRICS, USAGE
from fleetpulse.telemetry import logger

_log = logger(__name__)

TOPICS: Final = (METRICS.name, HEARTBEATS.name, USAGE.name)
RETRY_SECONDS: Final = 0.5
RETRIED: Final = (psycopg.Error, KafkaError, OSError, TimeoutError, StreamStalledError, NotDeliveredError, TopicError)
DAY_SECONDS: Final = 86_400.0
# A round of records is bounded by number here and by bytes in the consumer; messages hold some ten rows each.
ROWS_PER_MESSAGE: Final = 10
# A round of less than this part of the most there may be is worth a moment's wait.
SMALL_ROUND: Final = 10
# A round of fewer bytes is decoded at once, whoever sent it: a thread costs more than that takes.
SMALL_BYTES: Final = 262_144
# Longest wait for records that came after those of a small round: an answer of the broker.
FRESH_SECONDS: Final = 0.003
# Names of machines that are long gone are forgotten with all others once there are so many (a few hundred bytes each),
# but not again so soon: what is in use has to be looked up anew.
MOST_NAMES: Final = 1_000_000
FORGET_SECONDS: Final = 6 * 3600.0


class Ingest:
    """Owns partitions and writes what they hold. ``heard`` is called with the new heartbeats of each round."""

    def __init__(
        self,
        settings: CollectorSettings,
        stream: StreamSettings,
        database: DatabaseSettings,
        *,
        owner: str,
        marks_dirty: bool,
        metrics: CollectorMetrics,
        producer: StreamProducer,
        heard: Callable[[Iterable[Heartbeat]], None],
    ) -> None:
        self._settings = settings
        self._stream = stream
        self._sample_retention_seconds = database.retention_raw_days * DAY_SECONDS
        self._heartbeat_retention_seconds = database.retention_heartbeat_days * DAY_SECONDS
        self._usage_age_seconds = min(database.retention_usage_days, database.retention_raw_days) * DAY_SECONDS
        self._metrics = metrics
        self._producer = producer
        self._heard = heard
        self._database = DatabaseThread(database, "collector-writer")
        # Names and positions are looked up while the last transaction is still being written.
        self._lookups = DatabaseThread(database, "collector-lookups")
        self._ownership = Ownership(DatabaseThread(database, "collector-leases"), owner, settings.lease_seconds)
        self._source = Source(stream, owner, TOPICS)
        self._writer = Writer(owner, settings.lease_seconds, marks_dirty)
        self._owner = owner
        self._decoder = Decoder()
        self._directory = Directory(settings.series_per_worker)
        self._positions: dict[ProducerKey, Position] = {}
        self._writing: asyncio.Task[None] | None = None
        self._handed_over = self._forgot = float("-inf")
        self._was_small = False
        self._careful_rounds = 0
        self._unwritable: set[tuple[TopicPartition, int]] = set()
        self._last_round: tuple[TopicPartition, int] | None = None
        self._most_messages = settings.batch_rows // ROWS_PER_MESSAGE + 1
        self.problem: str | None = "starting"
        """Why nothing can be written at present; None while all is well."""

    async def run(self, stop: asyncio.Event) -> None:
        """Ingest until ``stop`` is set, through outages of broker and database."""
        try:
            while not stop.is_set():
                try:
                    await self._session(stop)
                except RETRIED as error:
                    self._interrupted(error)
                    if isinstance(error, psycopg.DataError):
                        self._suspect_a_message()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), RETRY_SECONDS)
                except FencedError as error:
                    self._interrupted(error)
        finally:
            await self._ownership.close()
            await self._lookups.close()
            await self._database.close()

    def committed(self) -> dict[TopicPartition, int]:
        """Next offsets of the partitions held, the write in progress included."""
        claims = self._ownership.claims.values()
        return {claim.partition: claim.next_offset for claim in claims if claim.next_offset is not None}

    def _interrupted(self, error: Exception) -> None:
        """Log an outage once, and count it by its kind."""
        kind = "stream"
        if isinstance(error, FencedError):
            kind = "fenced"
        elif isinstance(error, psycopg.Error):
            kind = "database"
        if kind == "stream":
            self._metrics.stream_failures.inc()
        else:
            self._metrics.write_failures.labels(kind).inc()
        problem = f"{kind}: {str(error).strip() or repr(error)}"
        if problem != self.problem:
            _log.warning("ingest interrupted", extra={"kind": kind, "error": problem})
        self.problem = problem

    def _suspect_a_message(self) -> None:
        """The database refused a value that validation let pass: write message by message until the one is found,
        and then let that one go."""
        if self._careful_rounds and self._last_round is not None:
            self._unwritable.add(self._last_round)
        self._careful_rounds = 2 * self._most_messages

    async def _session(self, stop: asyncio.Event) -> None:
        """From a clean slate until an error or the end."""
        self._directory.clear()
        self._positions.clear()
        try:
            await self._source.connect()
            async with asyncio.timeout(self._stream.request_timeout_seconds):
                await ensure_topics(self._stream)
            await self._ownership.begin()
            async with self._ownership.renewing():
                while not stop.is_set():
                    await self._round()
                await self._finish_writing()
                await self._ownership.release_all()
        finally:
            await self._drop_writing()
            await self._source.close()

    async def _round(self) -> None:
        if self._ownership.due():
            await self._balance()
        if self._directory.size + len(self._positions) > MOST_NAMES:
            await self._forget()
        careful = self._careful_rounds > 0
        fetched, gaps = await self._fetch(1 if careful else self._most_messages)
        for gap in gaps:
            await self._finish_writing()
            await self._record_gap(gap.claim, gap.to_offset, gap.reason)
        for topic, lag in self._source.lag_by_topic().items():
            self._metrics.lag.labels(topic).set(lag)
        if fetched:
            intake = await self._take_in(fetched)
            self._last_round = next((partition, records[0].offset) for partition, records in fetched.items())
            await self._write(intake)
            if careful:
                await self._finish_writing()
                self._careful_rounds -= 1
        elif self._writing is not None and self._writing.done():
            await self._finish_writing()
        self.problem = None

    async def _take_in(self, fetched: dict[TopicPartition, list[Record]]) -> Intake:
        """Decode a round. A large one, which strangers can make to take longer than a lease, on a thread: leases are
        renewed meanwhile, or collectors would take it from each other for ever."""
        take = functools.partial(
            take_in,
            fetched.items(),
            self._decoder,
            self._directory,
            self._settings.message_bytes,
            self._limits(time.time_ns(), self._usage_age_seconds),
            self._unwritable,
        )
        size = sum(len(record.value or b"") for records in fetched.values() for record in records)
        intake = take() if size < SMALL_BYTES else await asyncio.to_thread(take)
        self._metrics.recognised.inc(self._decoder.recognised)
        self._metrics.walked.inc(self._decoder.walked)
        self._decoder.recognised = self._decoder.walked = 0
        return intake

    async def _forget(self) -> None:
        """Begin anew with what is known of names and producers; the database has it all."""
        if time.monotonic() - self._forgot < FORGET_SECONDS:
            return
        self._forgot = time.monotonic()
        await self._finish_writing()
        self._directory.clear()
        self._positions.clear()

    async def _fetch(self, most: int) -> tuple[dict[TopicPartition, list[Record]], list[Gap]]:
        """The next round of records. It begins no sooner after a small one than ``batch_age_seconds``: fewer, larger
        transactions, at no noticeable delay."""
        early_seconds = self._handed_over + self._settings.batch_age_seconds - time.monotonic()
        if self._was_small and early_seconds > 0:
            await asyncio.sleep(early_seconds)
        fetched, gaps = await self._source.fetch(self._ownership.seconds_until_due(), most)
        count = sum(len(records) for records in fetched.values())
        self._was_small = count < most // SMALL_ROUND
        if count and self._was_small:
            # These were fetched when the last ones had been read; meanwhile there are others.
            more, more_gaps = await self._source.fetch(FRESH_SECONDS, most - count)
            for partition, records in more.items():
                fetched.setdefault(partition, []).extend(records)
            gaps += more_gaps
        return fetched, gaps

    async def _balance(self) -> None:
        """Take and give back partitions, so that every live collector has its share."""
        changed = await self._ownership.balance(await self._source.partitions(), self._finish_writing)
        if not changed:
            return
        await self._finish_writing()
        held = {claim.partition for claim in self._ownership.claims.values()}
        for key in [key for key in self._positions if (key.topic, key.partition) not in held]:
            del self._positions[key]  # another collector moves it on from now
        for gap in await self._source.assign(self._ownership.claims.values()):
            await self._record_gap(gap.claim, gap.to_offset, gap.reason)
        self._metrics.partitions.set(len(held))

    async def _record_gap(self, claim: Claim, to_offset: int, reason: str) -> None:
        moved = await self._database.run(
            offsets.record_gap, self._owner, self._settings.lease_seconds, claim, to_offset, reason
        )
        self._ownership.claims[claim.partition] = moved
        self._source.restart(claim.partition, to_offset)
        self._metrics.gaps.labels(reason).inc()
        _log.error(
            "offsets cannot be read",
            extra={
                "topic": claim.partition.topic,
                "partition": claim.partition.partition,
                "from_offset": claim.next_offset,
                "to_offset": to_offset,
                "reason": reason,
            },
        )

    async def _write(self, intake: Intake) -> None:
        """Prepare a transaction while the last one is being written, then hand it over."""
        await self._know_producers(intake)
        batch, heard = fill(intake, self._directory, self._positions)
        if self._directory.incomplete:
            await self._lookups.run(self._directory.resolve)
        now = time.time_ns()
        sample_limits = self._limits(now, self._sample_retention_seconds)
        encoded = encode(batch, sample_limits, self._limits(now, self._heartbeat_retention_seconds))
        self._heard(heard)
        await bury(self._producer, intake.letters)
        positions = position_rows(intake.producers, self._positions, self._directory)
        await self._finish_writing()
        claims = self._ownership.claims
        steps = {partition: (claims[partition], *end) for partition, end in intake.ends.items()}
        for partition, (claim, offset, witness) in steps.items():
            claims[partition] = claim.at(offset, witness)
        self._writing = asyncio.create_task(
            self._commit(WriteSet(encoded, positions, steps, intake.usage), intake, heard), name="collector-write"
        )
        self._handed_over = time.monotonic()
        # The task begins at the next pause of this one, which may otherwise be after the next round's decoding.
        await asyncio.sleep(0)

    def _limits(self, now_unix_nano: int, retention_seconds: float) -> TimeLimits:
        settings = self._settings
        return TimeLimits.around(
            now_unix_nano, retention_seconds, settings.late_after_seconds, settings.future_tolerance_seconds
        )

    async def _know_producers(self, intake: Intake) -> None:
        """Load what is stored of producers not heard before."""
        # Not a difference of sets: that would go through all producers ever heard.
        unknown = {key for key in intake.producers if key not in self._positions}
        if not unknown:
            return
        if self._directory.incomplete:
            await self._lookups.run(self._directory.resolve)
        keys = {(self._directory.worker_keys.one(key.worker), *key[1:]): key for key in unknown}
        stored = await self._lookups.run(_load_positions, list(keys))
        for key in unknown:
            self._positions[key] = Position()
        for name, position in stored.items():
            self._positions[keys[name]] = position

    async def _commit(self, work: WriteSet, intake: Intake, heard: list[Heartbeat]) -> None:
        started = time.monotonic()
        fresh = await self._database.run(self._writer.write, work)
        self._metrics.write_seconds.observe(time.monotonic() - started)
        self._account(work.encoded, intake, heard)
        if work.usage:
            self._metrics.rows.labels(USAGE_RELATION).inc(fresh)
            self._metrics.usage_duplicates.inc(len(work.usage) - fresh)

    async def _finish_writing(self) -> None:
        """Wait for the transaction in progress; its error is raised here."""
        if self._writing is not None:
            # Ours until it is over: whoever is cancelled here still has it to drop.
            await asyncio.wait({self._writing})
            writing, self._writing = self._writing, None
            writing.result()

    async def _drop_writing(self) -> None:
        """Leave no transaction behind: wait for it, its outcome is read from the database later."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        done, _ = await asyncio.wait({writing}, timeout=self._settings.lease_seconds)
        if not done:
            self._database.abort()
            await asyncio.wait({writing})
        if not writing.cancelled() and writing.exception() is not None:
            _log.debug("write in flight failed", extra={"error": repr(writing.exception())})

    def _account(self, encoded: Encoded, intake: Intake, heard: list[Heartbeat]) -> None:
        """Count what is committed."""
        metrics, now = self._metrics, time.time()
        for topic, count in intake.messages.items():
            metrics.messages.labels(topic).inc(count)
            metrics.message_bytes.labels(topic).inc(intake.message_bytes[topic])
        for copy in encoded.copies:
            metrics.rows.labels(copy.relation).inc(copy.rows)
        if encoded.histograms:
            metrics.rows.labels("metric_histograms").inc(len(encoded.histograms))
        for _, kind, reason, count in encoded.quality:
            metrics.data_quality.labels(kind, reason).inc(count)
        if intake.missing_identity:
            metrics.data_quality.labels("rejected", "missing_identity").inc(intake.missing_identity)
        for reason, letters in by_reason(intake.letters).items():
            metrics.dead_letters.labels(reason).inc(len(letters))
            # One line for all of them, with the first as an example: a flood of junk is none of lines.
            _log.warning("message refused", extra={**letters[0].told(), "count": len(letters)})
        for correction in encoded.corrections:
            metrics.corrections.labels(correction.table, correction.column, correction.verdict, correction.reason).inc(
                correction.count
            )
            _log.warning(f"value {correction.verdict}", extra=self._told(correction))
        for heartbeat in heard:
            metrics.heartbeat_commit_seconds.observe(max(0.0, now - heartbeat.sent_unix_nano / 1e9))
        metrics.last_commit.set(now)

    def _told(self, correction: Any) -> dict[str, object]:
        worker_id, instance_id = self._directory.name_of(correction.worker)
        return {
            "relation": correction.table,
            "column": correction.column,
            "reason": correction.reason,
            "count": correction.count,
            "worker_id": worker_id,
            "instance_id": instance_id,
            "raw_value": repr(correction.raw_value),
        }


def _load_positions(
    connection: psycopg.Connection[Any], names: list[tuple[int, str, int, str]]
) -> dict[tuple[int, str, int, str], Position]:
    rows = connection.execute(
        "SELECT p.worker_key, p.topic, p.partition, p.boot_id, p.high_water, p.window_bits FROM producer_positions p"
        " JOIN unnest(%s::int[], %s::text[], %s::int[], %s::text[]) AS n (worker_key, topic, partition, boot_id)"
        " USING (worker_key, topic, partition, boot_id)",
        [list(column) for column in zip(*names, strict=True)],
    )
    return {tuple(row[:4]): stored_position(row[4], bytes(row[5])) for row in rows}
