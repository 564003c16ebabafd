"""What requests cost, and their sums by the minute, hour and day.

An instance's price runs by the second, and whoever is at the engine shares it: while N requests are there, each pays an
N-th. A request's cost is its share of the engine's time, ``busy_seconds``, at the instance's price. The shares of all
requests add up to the time in which the engine had any; the rest of the instance's price is nobody's, it was idle.

Whoever stores records marks the time they took. A pass takes marks away, computes the shares of the requests that
overlap it, then the sums that these are in, all in one transaction. So sums are always those of the rows, which may
come late and in any order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString

from psycopg.sql import SQL, Composed

from collector.usage import LONGEST_SECONDS
from fleetpulse.database.connect import Connection

# Marks of one transaction.
MARKS: Final = 2_000
# Advisory locks are numbers; these eight bytes are "fpusages".
_LOCK: Final = int.from_bytes(b"fpusages")

# Marks of an instance in the same hour become one range: long-lasting load makes many that overlap.
_TAKE: Final = """
WITH chosen AS (SELECT ctid FROM finops.usage_marks LIMIT %s),
taken AS (
    DELETE FROM finops.usage_marks WHERE ctid = ANY (ARRAY(SELECT ctid FROM chosen))
    RETURNING instance_id, from_time, to_time
)
SELECT array_agg(instance_id), array_agg(from_time), array_agg(to_time), sum(marks)::int
FROM (
    SELECT instance_id, min(from_time) AS from_time, max(to_time) AS to_time, count(*) AS marks
    FROM taken GROUP BY instance_id, date_trunc('hour', from_time)
) AS ranges
"""

# touched: requests whose share may have changed. around: whoever was there with any of these. The shares that a request
# would have had from the range's first moment up to another one only grow, and its own are what they grew by meanwhile.
_SHARE: Final = """
WITH ranges AS MATERIALIZED (
    SELECT * FROM unnest(%(instances)s::text[], %(from_times)s::timestamptz[], %(to_times)s::timestamptz[])
    WITH ORDINALITY AS r (instance_id, from_time, to_time, range)
),
touched AS MATERIALIZED (
    SELECT r.range, u.instance_id, u.time, u.record_id, u.ended_at
    FROM ranges AS r CROSS JOIN LATERAL (
        SELECT * FROM finops.inference_usage AS u
        WHERE u.instance_id = r.instance_id AND u.ended_at >= r.from_time AND u.time <= r.to_time
            AND u.time >= %(oldest)s AND u.time <= %(newest)s
    ) AS u
),
spans AS MATERIALIZED (
    SELECT range, instance_id, min(time) AS from_time, max(ended_at) AS to_time FROM touched GROUP BY range, instance_id
),
around AS (
    SELECT s.range, u.time, u.ended_at
    FROM spans AS s CROSS JOIN LATERAL (
        SELECT * FROM finops.inference_usage AS u
        WHERE u.instance_id = s.instance_id AND u.ended_at >= s.from_time AND u.time <= s.to_time
            AND u.time >= %(around_oldest)s AND u.time <= %(around_newest)s
    ) AS u
),
steps AS (
    SELECT range, at, sum(change) AS change
    FROM (
        SELECT range, time AS at, 1 AS change FROM around
        UNION ALL
        SELECT range, ended_at, -1 FROM around
    ) AS ends
    GROUP BY range, at
),
counted AS (
    SELECT range, at, sum(change) OVER steps AS running, extract(epoch FROM lead(at) OVER steps - at)::float8 AS seconds
    FROM steps WINDOW steps AS (PARTITION BY range ORDER BY at)
),
shares AS MATERIALIZED (
    SELECT
        range, at,
        coalesce(sum(CASE WHEN running > 0 THEN seconds / running ELSE 0 END) OVER (
            PARTITION BY range ORDER BY at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ), 0) AS share
    FROM counted
),
settled AS MATERIALIZED (
    SELECT DISTINCT ON (t.time, t.record_id) t.time, t.record_id, ending.share - beginning.share AS busy_seconds
    FROM touched AS t
    JOIN shares AS beginning ON beginning.range = t.range AND beginning.at = t.time
    JOIN shares AS ending ON ending.range = t.range AND ending.at = t.ended_at
)
UPDATE finops.inference_usage AS u
SET busy_seconds = s.busy_seconds, cost = round(u.price_per_hour / 3600 * s.busy_seconds::numeric, 9)
FROM settled AS s
WHERE u.time = s.time AND u.record_id = s.record_id AND u.time >= %(oldest)s AND u.time <= %(newest)s
    -- Less than a microsecond is rounding.
    AND (u.busy_seconds IS NULL OR abs(u.busy_seconds - s.busy_seconds) > 0.000001)
RETURNING u.instance_id, date_trunc('minute', u.time)
"""

# Each sum as it is made of requests, and of finer sums; where that is empty, as its name says.
_MEASURES: Final[Mapping[LiteralString, tuple[LiteralString, LiteralString]]] = {
    "model": ("max(model)", "max(model)"),
    "total_requests": ("count(*)", "sum(total_requests)"),
    **{
        f"{name}_requests": (f"count(*) FILTER (WHERE outcome = '{outcome}')", f"sum({name}_requests)")
        for name, outcome in (
            ("successful", "completed"),
            ("refused", "refused"),
            ("failed", "failed"),
            ("broken", "broken"),
            ("cancelled", "cancelled"),
        )
    },
    "unknown_token_requests": ("count(*) FILTER (WHERE total_tokens IS NULL)", "sum(unknown_token_requests)"),
    "input_tokens": ("sum(input_tokens)", "sum(input_tokens)"),
    "output_tokens": ("sum(output_tokens)", "sum(output_tokens)"),
    # Of each request as much as is known.
    "total_tokens": (
        "sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0))"
        " FILTER (WHERE input_tokens IS NOT NULL OR output_tokens IS NOT NULL)",
        "sum(total_tokens)",
    ),
    "cached_tokens": ("sum(cached_tokens)", "sum(cached_tokens)"),
    **{f"duration_seconds_{part}": (f"{part}(duration_seconds)", "") for part in ("sum", "min", "max")},
    **{f"first_token_seconds_{part}": (f"{part}(first_token_seconds)", "") for part in ("sum", "count", "min", "max")},
    "busy_seconds": ("sum(busy_seconds)", "sum(busy_seconds)"),
    "cost": ("sum(cost)", "sum(cost)"),
    "currency": ("max(currency)", "max(currency)"),
    "unpriced_requests": ("count(*) FILTER (WHERE price_per_hour IS NULL)", "sum(unpriced_requests)"),
    "last_request_at": ("max(time)", "max(last_request_at)"),
}


_SUM: Final = """
INSERT INTO {table} (bucket, instance_id, organization_id, key_id, model_id, {names})
SELECT wanted.bucket, instance_id, organization_id, key_id, model_id, {made}
FROM unnest(%(instances)s::text[], %(buckets)s::timestamptz[]) AS wanted (instance, bucket)
JOIN {source} AS s
    ON s.instance_id = wanted.instance AND s.{time} >= wanted.bucket AND s.{time} < wanted.bucket + %(width)s
WHERE s.{time} >= %(from_time)s AND s.{time} < %(to_time)s
GROUP BY wanted.bucket, instance_id, organization_id, key_id, model_id
ON CONFLICT (bucket, instance_id, organization_id, key_id, model_id) DO UPDATE SET ({names}) = ROW ({new})
"""


@dataclass(frozen=True, slots=True)
class Level:
    """A table of sums: what it is made from, by which time, and over how long."""

    table: LiteralString
    source: LiteralString
    time: LiteralString
    unit: str
    width: timedelta

    def statement(self) -> Composed:
        """Make buckets of instances anew from all rows that are there."""
        finest = self.time == "time"
        made = [SQL(rows if finest else sums or _again(name)) for name, (rows, sums) in _MEASURES.items()]
        comma = SQL(", ")
        return SQL(_SUM).format(
            table=SQL(self.table),
            source=SQL(self.source),
            time=SQL(self.time),
            names=comma.join(map(SQL, _MEASURES)),
            made=comma.join(made),
            new=comma.join(SQL("EXCLUDED.{}").format(SQL(name)) for name in _MEASURES),
        )


def _again(name: LiteralString) -> LiteralString:
    """How finer sums of a measure make a coarser one."""
    part = name.rpartition("_")[2]
    return f"{'sum' if part == 'count' else part}({name})"


LEVELS: Final = (
    Level("finops.inference_usage_1m", "finops.inference_usage", "time", "minute", timedelta(minutes=1)),
    Level("finops.inference_usage_1h", "finops.inference_usage_1m", "bucket", "hour", timedelta(hours=1)),
    Level("finops.inference_usage_1d", "finops.inference_usage_1h", "bucket", "day", timedelta(days=1)),
)
Buckets = set[tuple[str, datetime]]


async def settle(connection: Connection) -> int:
    """Work off all marks that are there, on an autocommit connection; returns how many requests changed.

    Raises psycopg.Error; what was not committed stays marked.
    """
    changed = 0
    while True:
        marks, requests = await _step(connection)
        changed += requests
        # Fewer than asked for: all that were there. While records come in there are always new ones.
        if marks < MARKS:
            return changed


async def _step(connection: Connection) -> tuple[int, int]:
    """One transaction's worth: marks taken, requests changed."""
    async with connection.transaction():
        cursor = await connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,))
        if await cursor.fetchone() != (True,):
            return 0, 0
        instances, from_times, to_times, marks = (await (await connection.execute(_TAKE, (MARKS,))).fetchall())[0]
        if not marks:
            return 0, 0
        rows = await (await connection.execute(_SHARE, _share(instances, from_times, to_times))).fetchall()
        buckets: Buckets = set(rows)
        for level in LEVELS:
            buckets = {(instance, _floor(moment, level.unit)) for instance, moment in buckets}
            await _sum(connection, level, sorted(buckets))
    return marks, len(rows)


def _share(instances: list[str], from_times: list[datetime], to_times: list[datetime]) -> dict[str, Any]:
    """Parameters of the statement. Times of requests are bounded, so that few partitions are looked at."""
    longest = timedelta(seconds=LONGEST_SECONDS)
    oldest, newest = min(from_times) - longest, max(to_times)
    return {
        "instances": instances,
        "from_times": from_times,
        "to_times": to_times,
        "oldest": oldest,
        "newest": newest,
        "around_oldest": oldest - longest,
        "around_newest": newest + longest,
    }


async def _sum(connection: Connection, level: Level, buckets: Sequence[tuple[str, datetime]]) -> None:
    if not buckets:
        return
    starts = [bucket for _, bucket in buckets]
    parameters: dict[str, Any] = {
        "instances": [instance for instance, _ in buckets],
        "buckets": starts,
        "width": level.width,
        # Known while planning, so that only the partitions concerned are looked at.
        "from_time": min(starts),
        "to_time": max(starts) + level.width,
    }
    await connection.execute(level.statement(), parameters)


def _floor(moment: datetime, unit: str) -> datetime:
    """Start of the bucket, in UTC."""
    minute = moment.astimezone(UTC).replace(second=0, microsecond=0)
    if unit == "minute":
        return minute
    return minute.replace(minute=0) if unit == "hour" else minute.replace(hour=0, minute=0)
