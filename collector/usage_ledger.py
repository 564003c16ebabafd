"""The token ledger: what the proxy's records say that a worker made of tokens, against what its engine's counters say.

Both sides are put into windows of the same length. A counter's increase is spread evenly between its two readings; a
request's input counts at its first token, and its output is spread evenly from there to its end. So what is under way
when a window ends is divided between the windows as it was made, roughly.

A side that is not known makes the window unknown, and not a gap of everything:

- the engine's, where its counters were not read all through the window (``no_engine_counters``, ``engine_incomplete``);
- the proxy's, where nobody's records came from around that time (``no_proxy_records``). Where records came, a worker
  without any was sent nothing, which is a known zero.

Windows of the last half hour or so are made again with each pass, for what comes late.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from collector.metrics import CollectorMetrics
from collector.usage import LONGEST_SECONDS
from fleetpulse.database.connect import Connection
from fleetpulse.settings import CollectorSettings, DatabaseSettings

# Longest time between two readings of a counter that still says when it grew: two and a half of the slowest common
# interval (a stock collector's 60 s).
GAP: Final = timedelta(seconds=150)
# Of an interval: another collector's pass as recent as this makes ours needless.
_RECENT_SHARE: Final = 0.8

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_LEDGER: Final = """
WITH windows AS MATERIALIZED (
    SELECT w AS window_start, w + %(width)s AS window_end
    FROM generate_series(%(first)s::timestamptz, %(last)s::timestamptz, %(width)s) AS w
),
readings AS (
    SELECT
        worker_key, engine_key, time, prompt_tokens_total AS input, generation_tokens_total AS output,
        lag(time) OVER readings AS before, lag(prompt_tokens_total) OVER readings AS input_before,
        lag(generation_tokens_total) OVER readings AS output_before
    FROM engine_samples
    WHERE time >= %(first)s::timestamptz - %(gap)s AND time < %(last)s::timestamptz + %(width)s + %(gap)s
        AND prompt_tokens_total IS NOT NULL AND generation_tokens_total IS NOT NULL
    WINDOW readings AS (PARTITION BY engine_key ORDER BY time)
),
-- A counter that went down was reset: what it counted since is its value.
steps AS (
    SELECT
        worker_key, engine_key, before, time, is_reset,
        CASE WHEN is_reset THEN input ELSE input - input_before END AS input,
        CASE WHEN is_reset THEN output ELSE output - output_before END AS output
    FROM readings CROSS JOIN LATERAL (SELECT input < input_before OR output < output_before AS is_reset) AS r
    WHERE time > before AND time - before <= %(gap)s
),
by_engine AS (
    SELECT
        window_start, worker_key, engine_key, sum(input * part) AS input, sum(output * part) AS output,
        count(*) FILTER (WHERE is_reset)::int AS resets, sum(seconds) AS seconds
    FROM steps
    CROSS JOIN generate_series(date_bin(%(width)s, before, %(epoch)s), time, %(width)s) AS window_start
    CROSS JOIN LATERAL (
        SELECT extract(
            epoch FROM least(time, window_start + %(width)s) - greatest(before, window_start)
        )::float8 AS seconds
    ) AS s
    CROSS JOIN LATERAL (SELECT seconds / extract(epoch FROM time - before)::float8 AS part) AS p
    WHERE window_start >= %(first)s AND window_start <= %(last)s AND window_start < time
    GROUP BY window_start, worker_key, engine_key
),
engine AS (
    SELECT
        window_start, instance_id, worker_id, sum(input) AS input, sum(output) AS output, sum(resets)::int AS resets,
        -- Less than a millisecond is rounding.
        bool_and(seconds > extract(epoch FROM %(width)s::interval)::float8 - 0.001) AS is_whole
    FROM by_engine JOIN workers USING (worker_key)
    GROUP BY window_start, instance_id, worker_id
),
busy AS MATERIALIZED (
    SELECT DISTINCT instance_id FROM finops.inference_usage_1h
    WHERE bucket >= %(oldest)s AND bucket < %(last)s::timestamptz + %(width)s
),
attempts AS (
    SELECT
        u.*, u.time + make_interval(secs => least(coalesce(u.first_token_seconds, 0), u.duration_seconds)) AS first_at
    FROM busy CROSS JOIN LATERAL (
        SELECT * FROM finops.inference_usage AS u
        WHERE u.instance_id = busy.instance_id AND u.ended_at >= %(first)s AND u.time >= %(oldest)s
            AND u.time < %(last)s::timestamptz + %(width)s
    ) AS u
),
proxy AS (
    SELECT
        window_start, instance_id, worker_id,
        count(*) FILTER (WHERE is_ending) AS requests,
        count(*) FILTER (WHERE is_ending AND total_tokens IS NULL AND outcome <> 'refused') AS unknown_requests,
        sum(input_tokens) FILTER (WHERE first_at >= window_start AND first_at < window_end) AS input,
        sum(output_tokens * part) AS output
    FROM attempts
    CROSS JOIN generate_series(
        date_bin(%(width)s, greatest(time, %(first)s), %(epoch)s), least(ended_at, %(last)s), %(width)s
    ) AS window_start
    CROSS JOIN LATERAL (SELECT window_start + %(width)s AS window_end) AS w
    CROSS JOIN LATERAL (
        SELECT
            ended_at >= window_start AND ended_at < window_end AS is_ending,
            CASE WHEN ended_at > first_at THEN greatest(0, extract(
                epoch FROM least(ended_at, window_end) - greatest(first_at, window_start)
            )::float8 / extract(epoch FROM ended_at - first_at)::float8)
            ELSE (ended_at >= window_start AND ended_at < window_end)::int END AS part
    ) AS p
    GROUP BY window_start, instance_id, worker_id
),
-- Whether any proxy's records came from that time or just before or after.
heard AS (
    SELECT window_start, EXISTS (
        SELECT FROM finops.inference_usage_1m
        WHERE bucket > window_start - %(width)s - INTERVAL '1 minute' AND bucket < window_end + %(width)s
    ) AS is_heard
    FROM windows
),
sides AS (
    SELECT
        window_start, instance_id, worker_id, coalesce(p.requests, 0) AS requests,
        coalesce(p.unknown_requests, 0) AS unknown_requests, e.input AS engine_input, e.output AS engine_output,
        coalesce(e.resets, 0) AS resets,
        CASE
            WHEN e.input IS NULL THEN 'no_engine_counters'
            WHEN NOT e.is_whole THEN 'engine_incomplete'
            WHEN NOT is_heard THEN 'no_proxy_records'
        END AS reason,
        CASE WHEN is_heard THEN coalesce(p.input, 0) END::float8 AS proxy_input,
        CASE WHEN is_heard THEN coalesce(p.output, 0) END::float8 AS proxy_output
    FROM proxy AS p
    FULL JOIN engine AS e USING (window_start, instance_id, worker_id)
    JOIN heard USING (window_start)
    -- Where nothing happened on either side there is nothing to compare.
    WHERE p.instance_id IS NOT NULL OR e.input > 0 OR e.output > 0
)
INSERT INTO finops.token_ledger AS l
SELECT
    window_start, extract(epoch FROM %(width)s::interval)::int, instance_id, worker_id,
    CASE WHEN reason IS NULL THEN 'known' ELSE 'unknown' END, reason, requests, unknown_requests, proxy_input,
    proxy_output, engine_input, engine_output, resets,
    CASE WHEN reason IS NULL THEN engine_input - proxy_input END,
    CASE WHEN reason IS NULL THEN engine_output - proxy_output END,
    CASE WHEN reason IS NULL THEN
        (engine_input + engine_output - proxy_input - proxy_output) / nullif(engine_input + engine_output, 0) END,
    now()
FROM sides
ON CONFLICT (window_start, instance_id, worker_id, window_seconds) DO UPDATE SET
    (status, reason, proxy_requests, proxy_unknown_requests, proxy_input_tokens, proxy_output_tokens,
        engine_input_tokens, engine_output_tokens, engine_resets, gap_input_tokens, gap_output_tokens, gap_ratio,
        computed_at)
    = ROW (EXCLUDED.status, EXCLUDED.reason, EXCLUDED.proxy_requests, EXCLUDED.proxy_unknown_requests,
        EXCLUDED.proxy_input_tokens, EXCLUDED.proxy_output_tokens, EXCLUDED.engine_input_tokens,
        EXCLUDED.engine_output_tokens, EXCLUDED.engine_resets, EXCLUDED.gap_input_tokens, EXCLUDED.gap_output_tokens,
        EXCLUDED.gap_ratio, EXCLUDED.computed_at)
    WHERE (l.reason, l.proxy_requests, l.proxy_unknown_requests, l.proxy_input_tokens, l.proxy_output_tokens,
            l.engine_input_tokens, l.engine_output_tokens)
        IS DISTINCT FROM (EXCLUDED.reason, EXCLUDED.proxy_requests, EXCLUDED.proxy_unknown_requests,
            EXCLUDED.proxy_input_tokens, EXCLUDED.proxy_output_tokens, EXCLUDED.engine_input_tokens,
            EXCLUDED.engine_output_tokens)
"""

_CLAIM: Final = """
SELECT FROM finops.ledger_passes WHERE finished_at < now() - %s FOR UPDATE SKIP LOCKED
"""

# The ratio is of workers whose every request has told its tokens: what the others did not tell is no gap.
_SUMMARY: Final = """
SELECT
    count(*) FILTER (WHERE status = 'known'), count(*) FILTER (WHERE status = 'unknown'),
    sum(gap_input_tokens), sum(gap_output_tokens),
    sum(abs(gap_input_tokens)) FILTER (WHERE proxy_unknown_requests = 0)
        / nullif(sum(engine_input_tokens) FILTER (WHERE status = 'known' AND proxy_unknown_requests = 0), 0),
    sum(abs(gap_output_tokens)) FILTER (WHERE proxy_unknown_requests = 0)
        / nullif(sum(engine_output_tokens) FILTER (WHERE status = 'known' AND proxy_unknown_requests = 0), 0)
FROM finops.token_ledger WHERE window_start = %s AND window_seconds = %s
"""


@dataclass(frozen=True, slots=True)
class Summary:
    """The newest window: workers whose gap is known and unknown; gaps, and their share of the engines' tokens."""

    known: int
    unknown: int
    gap_input_tokens: float | None
    gap_output_tokens: float | None
    gap_input_ratio: float | None
    gap_output_ratio: float | None


async def reckon(
    connection: Connection, settings: CollectorSettings, database: DatabaseSettings, now: datetime
) -> Summary:
    """Bring the windows that may still change up to date, unless another collector does or just did, and tell what the
    newest one says. On an autocommit connection. Raises psycopg.Error."""
    width = timedelta(seconds=settings.ledger_window_seconds)
    last = _start(now - timedelta(seconds=settings.ledger_settle_seconds), width) - width
    first = min(last, _start(now - timedelta(seconds=settings.ledger_lookback_seconds), width))
    recent = timedelta(seconds=settings.ledger_interval_seconds * _RECENT_SHARE)
    async with connection.transaction():
        claimed = await (await connection.execute(_CLAIM, (recent,))).fetchall()
        if claimed:
            await connection.execute(
                _LEDGER,
                {
                    "first": first,
                    "last": last,
                    "width": width,
                    "gap": GAP,
                    "epoch": _EPOCH,
                    "oldest": first - timedelta(seconds=LONGEST_SECONDS),
                },
            )
            await connection.execute(
                "DELETE FROM finops.token_ledger WHERE window_start < %s",
                (now - timedelta(days=database.retention_hour_days),),
            )
            await connection.execute("UPDATE finops.ledger_passes SET finished_at = now()")
    (row,) = await (await connection.execute(_SUMMARY, (last, settings.ledger_window_seconds))).fetchall()
    return Summary(*row)


def show(summary: Summary, metrics: CollectorMetrics) -> None:
    """As metrics. What is not known has no series."""
    metrics.ledger_workers.labels("known").set(summary.known)
    metrics.ledger_workers.labels("unknown").set(summary.unknown)
    for gauge, by_direction in (
        (metrics.ledger_gap, {"input": summary.gap_input_tokens, "output": summary.gap_output_tokens}),
        (metrics.ledger_gap_ratio, {"input": summary.gap_input_ratio, "output": summary.gap_output_ratio}),
    ):
        gauge.clear()
        for direction, value in by_direction.items():
            if value is not None:
                gauge.labels(direction).set(value)


def _start(moment: datetime, width: timedelta) -> datetime:
    """Start of the window that a moment is in; windows are counted from midnight UTC of 1970."""
    return _EPOCH + (moment - _EPOCH) // width * width
