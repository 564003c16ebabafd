"""One transaction: rows, producer positions and data quality, and last of all the offsets under their fence."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
from aiokafka import TopicPartition

from collector import binary, offsets, usage
from collector.encode import Encoded
from collector.offsets import Claim
from fleetpulse.stream.usage import UsageRecord

# One write of a COPY stream; larger ones only cost memory.
CHUNK_BYTES: Final = 1_048_576

_MARK_DIRTY: Final = """
INSERT INTO rollup_dirty (relation, bucket)
SELECT relation, timestamptz '2000-01-01 00:00:00+00' + make_interval(secs => microseconds / 1000000.0)
FROM unnest(%s::text[], %s::bigint[]) AS m (relation, microseconds)
"""
_STORE_POSITIONS: Final = """
INSERT INTO producer_positions (worker_key, topic, partition, boot_id, high_water, window_bits, updated_at)
SELECT p.*, now() FROM unnest(%s::int[], %s::text[], %s::int[], %s::text[], %s::bigint[], %s::bytea[]) AS p
ON CONFLICT (worker_key, topic, partition, boot_id) DO UPDATE
SET high_water = EXCLUDED.high_water, window_bits = EXCLUDED.window_bits, updated_at = EXCLUDED.updated_at
"""
_STORE_QUALITY: Final = """
INSERT INTO data_quality (worker_key, hour, kind, reason, count)
SELECT q.worker_key, date_trunc('hour', now()), q.kind, q.reason, q.count
FROM unnest(%s::int[], %s::text[], %s::text[], %s::bigint[]) AS q (worker_key, kind, reason, count)
ON CONFLICT (worker_key, hour, kind, reason) DO UPDATE SET count = data_quality.count + EXCLUDED.count
"""

PositionRow = tuple[int, str, int, str, int, bytes]
"""Worker key, topic, partition, boot id, high water, window."""


@dataclass(frozen=True, slots=True)
class WriteSet:
    """All that belongs to one transaction."""

    encoded: Encoded
    positions: Sequence[PositionRow]
    steps: Mapping[TopicPartition, tuple[Claim, int, str]]
    usage: Sequence[UsageRecord] = ()


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes as one owner. ``marks_dirty``: rollups are kept by us, not by TimescaleDB."""

    owner: str
    lease_seconds: float
    marks_dirty: bool

    def write(self, connection: psycopg.Connection[Any], work: WriteSet) -> int:
        """Write everything or nothing; returns how many usage records were new.

        Raises offsets.FencedError when a partition belongs to another collector now, and psycopg.Error when the
        database does not answer; in the latter case the transaction may have been committed, and only the offsets in
        the database tell.
        """
        # All that is computed comes first: others wait for what a transaction holds.
        histograms = _histogram_rows(work.encoded.histograms)
        marks = _marks(work.encoded) if self.marks_dirty else []
        positions = _columns(work.positions)
        quality = _columns(work.encoded.quality)
        records = usage.columns(work.usage)
        with connection.transaction():
            for copy in work.encoded.copies:
                _copy(connection, copy.statement, copy.blocks)
            if histograms:
                _copy_histograms(connection, histograms)
            if marks:
                connection.execute(_MARK_DIRTY, marks)
            if positions:
                connection.execute(_STORE_POSITIONS, positions)
            if quality:
                connection.execute(_STORE_QUALITY, quality)
            fresh = usage.store(connection, records) if records else 0
            offsets.advance(connection, self.owner, self.lease_seconds, work.steps)
        return fresh


def _copy(connection: psycopg.Connection[Any], statement: str, blocks: Sequence[bytes]) -> None:
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        copy.write(binary.HEADER)
        for block in blocks:
            for start in range(0, len(block), CHUNK_BYTES):
                copy.write(memoryview(block)[start : start + CHUNK_BYTES])
        copy.write(binary.TRAILER)


def _histogram_rows(histograms: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [(datetime.fromtimestamp(unix_nano / 1e9, UTC), *rest) for unix_nano, *rest in histograms]


def _copy_histograms(connection: psycopg.Connection[Any], rows: Sequence[tuple[Any, ...]]) -> None:
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "COPY metric_histograms (time, series_key, count, sum, minimum, maximum, bounds, buckets) FROM STDIN"
        ) as copy,
    ):
        for row in rows:
            copy.write_row(row)


def _marks(encoded: Encoded) -> list[list[Any]]:
    return _columns([(copy.relation, minute) for copy in encoded.copies for minute in copy.minutes])


def _columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    """The columns of rows, none when there are none. In order, so that no two collectors wait for each other in a
    circle."""
    return [list(column) for column in zip(*sorted(rows), strict=True)]
