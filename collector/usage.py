"""Usage records of the proxy: which can be stored, and storing each of them once.

A record is named by the time it began and its id. Both are the same however often it is sent, so the table's own unique
index knows it again for as long as its row is kept: across restarts of anybody, and days in a proxy's spool.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import psycopg

from collector.validate import NANOSECONDS, TimeLimits
from fleetpulse.stream import usage
from fleetpulse.stream.errors import MalformedUsageError, UsageTimeError
from fleetpulse.stream.usage import UsageRecord

# Whoever asks what an engine did at a time looks this far back for requests that had begun before.
LONGEST_SECONDS: Final = 86_400.0
_NANOSECONDS_PER_MICROSECOND: Final = 1_000
_MICROSECONDS: Final = 1_000_000

# The price is the instance's own, which is that of its type when it was made. Where the instance is not known, neither
# is the price.
_STORE: Final = """
WITH stored AS (
    INSERT INTO finops.inference_usage (
        time, ended_at, record_id, request_id, attempt, instance_id, worker_id, organization_id, key_id, model_id,
        model, path, is_stream, outcome, status, duration_seconds, first_token_seconds, input_tokens, output_tokens,
        total_tokens, cached_tokens, token_source, price_per_hour, currency
    )
    SELECT
        TIMESTAMPTZ '1970-01-01 00:00+00' + r.started * INTERVAL '1 microsecond',
        TIMESTAMPTZ '1970-01-01 00:00+00' + r.ended * INTERVAL '1 microsecond',
        r.record_id, r.request_id, r.attempt, r.instance_id, r.worker_id, r.organization_id, r.key_id, r.model_id,
        r.model, r.path, r.is_stream, r.outcome, r.status, r.duration_seconds, r.first_token_seconds, r.input_tokens,
        r.output_tokens, r.input_tokens + r.output_tokens, r.cached_tokens, r.token_source, i.price_per_hour,
        CASE WHEN i.price_per_hour IS NOT NULL THEN i.currency END
    FROM unnest(
        %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::int[], %s::text[], %s::text[], %s::text[], %s::text[],
        %s::text[], %s::text[], %s::text[], %s::boolean[], %s::text[], %s::int[], %s::float8[], %s::float8[],
        %s::bigint[], %s::bigint[], %s::bigint[], %s::text[]
    ) AS r (
        started, ended, record_id, request_id, attempt, instance_id, worker_id, organization_id, key_id, model_id,
        model, path, is_stream, outcome, status, duration_seconds, first_token_seconds, input_tokens, output_tokens,
        cached_tokens, token_source
    )
    LEFT JOIN instances AS i ON i.instance_id = r.instance_id
    ON CONFLICT (time, record_id) DO NOTHING
    RETURNING instance_id, time, ended_at
),
marked AS (
    INSERT INTO finops.usage_marks
    SELECT instance_id, min(time), max(ended_at) FROM stored GROUP BY instance_id, date_trunc('hour', time)
)
SELECT count(*) FROM stored
"""


def read(value: bytes, limits: TimeLimits) -> UsageRecord:
    """A record that can be stored. Raises MessageError."""
    record = usage.decode(value)
    for name in ("duration_seconds", "first_token_seconds"):
        seconds = getattr(record, name)
        if seconds is not None and seconds > LONGEST_SECONDS:
            raise MalformedUsageError(f"{name} is {seconds:g}, more than {LONGEST_SECONDS:g}")
    if record.started_unix_nano > limits.newest:
        raise UsageTimeError(f"begins {_seconds(record.started_unix_nano - limits.newest)} too far in the future")
    if record.started_unix_nano < limits.oldest:
        raise UsageTimeError(f"begins {_seconds(limits.oldest - record.started_unix_nano)} too early to be kept")
    return record


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / NANOSECONDS:.0f} s"


def columns(records: Iterable[UsageRecord]) -> list[list[Any]]:
    """The columns that ``store`` writes, none when there are no records.

    Always in the same order, so that two collectors with the same records do not wait for each other in a circle.
    """
    ordered = sorted(records, key=lambda record: (record.started_unix_nano, record.record_id))
    return [list(column) for column in zip(*map(_row, ordered), strict=True)]


def store(connection: psycopg.Connection[Any], records: Sequence[Sequence[Any]]) -> int:
    """Write the records, in columns, that are not there yet, with the marks that they make; returns how many those
    were."""
    row = connection.execute(_STORE, records).fetchone()
    assert row is not None
    return int(row[0])


def _row(record: UsageRecord) -> Iterable[Any]:
    started = record.started_unix_nano // _NANOSECONDS_PER_MICROSECOND
    return (
        started,
        started + round(record.duration_seconds * _MICROSECONDS),
        record.record_id,
        record.request_id,
        record.attempt,
        record.instance_id,
        record.worker_id,
        record.organization_id,
        record.key_id,
        record.model_id,
        record.model,
        record.path,
        record.is_stream,
        record.outcome,
        record.status,
        record.duration_seconds,
        record.first_token_seconds,
        record.prompt_tokens,
        record.completion_tokens,
        record.cached_tokens,
        record.token_source,
    )
