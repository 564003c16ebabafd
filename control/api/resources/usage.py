"""``/usage`` and ``/usage/ledger``: tokens and money, and whether engines counted the same tokens."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Final, Literal, LiteralString

import msgspec
from psycopg.sql import SQL, Composed
from pydantic import AwareDatetime, Field

from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import WHOLE_NUMBER, Identity, Nothing, Query
from control.api.problems import FieldError, unprocessable
from fleetpulse.settings import DatabaseSettings

TAG: Final = "Usage"
GroupBy = Literal["model", "organization", "key", "instance"]
Granularity = Literal["minute", "hour", "day"]
WINDOW_SECONDS: Final = 86_400
# Without a granularity, sums are made of the finest buckets that are few enough: 2,880 minutes, 2,160 hours.
FINEST_SECONDS: Final[Mapping[Granularity, float]] = {"minute": 2 * 86_400, "hour": 90 * 86_400, "day": float("inf")}
# Far dates overflow somewhere.
YEARS: Final = range(2000, 2200)


class TimeQuery(Query):
    """Over which time."""

    window_s: Annotated[
        Annotated[int, Field(ge=1), WHOLE_NUMBER] | None,
        Field(description=f"Seconds until now, or until `until`; {WINDOW_SECONDS} when nothing is said"),
    ] = None
    since: Annotated[AwareDatetime | None, Field(description="From this time, instead of window_s")] = None
    until: Annotated[AwareDatetime | None, Field(description="Before this time; now when missing")] = None


class UsageQuery(TimeQuery):
    """Of whom, and how fine."""

    group_by: Annotated[GroupBy, Field(description="A row for each of these")] = "model"
    granularity: Annotated[
        Granularity | None, Field(description="A row for each of these as well; sums over the whole time when missing")
    ] = None


class LedgerQuery(TimeQuery):
    """Of whom."""

    instance_id: Annotated[Identity | None, Field(description="Only this instance")] = None
    status: Annotated[Literal["known", "unknown"] | None, Field(description="Only such windows")] = None


class UsageRow(msgspec.Struct, frozen=True):
    """Attempts that began in a time. What is not known is null; ``unknown_token_requests`` says of how many."""

    time: datetime | None
    id: str
    name: str | None
    requests: int
    successful_requests: int
    refused_requests: int
    failed_requests: int
    broken_requests: int
    cancelled_requests: int
    unknown_token_requests: int
    input_tokens: int | None
    output_tokens: int | None
    total_tokens: int | None
    cached_tokens: int | None
    mean_duration_seconds: float | None
    mean_first_token_seconds: float | None
    busy_seconds: float | None
    costs: dict[str, float]
    """By currency."""
    unpriced_requests: int


class Usage(msgspec.Struct, frozen=True):
    """Newest first, then most tokens first. ``since`` is the start of the first bucket that is summed."""

    since: datetime
    until: datetime
    group_by: GroupBy
    granularity: Granularity | None
    truncated: bool
    rows: Sequence[UsageRow]


class LedgerRow(msgspec.Struct, frozen=True):
    """A worker's tokens in a window, by both sides. Gaps are the engine's tokens minus the proxy's."""

    window_start: datetime
    window_seconds: int
    instance_id: str
    worker_id: str
    status: Literal["known", "unknown"]
    reason: str | None
    proxy_requests: int
    proxy_unknown_requests: int
    proxy_input_tokens: float | None
    proxy_output_tokens: float | None
    engine_input_tokens: float | None
    engine_output_tokens: float | None
    engine_resets: int
    gap_input_tokens: float | None
    gap_output_tokens: float | None
    gap_ratio: float | None
    computed_at: datetime


class Ledger(msgspec.Struct, frozen=True):
    """Newest first."""

    since: datetime
    until: datetime
    truncated: bool
    rows: Sequence[LedgerRow]


_USAGE: Final = """
WITH sums AS (
    SELECT
        {time} AS time, {id} AS id, currency, max(model) AS model, sum(total_requests) AS requests,
        sum(successful_requests) AS successful, sum(refused_requests) AS refused, sum(failed_requests) AS failed,
        sum(broken_requests) AS broken, sum(cancelled_requests) AS cancelled, sum(unknown_token_requests) AS unknown,
        sum(input_tokens) AS input, sum(output_tokens) AS output, sum(total_tokens) AS total,
        sum(cached_tokens) AS cached, sum(duration_seconds_sum) AS duration,
        sum(first_token_seconds_sum) AS first_token, sum(first_token_seconds_count) AS first_tokens,
        sum(busy_seconds) AS busy, sum(cost) AS cost, sum(unpriced_requests) AS unpriced
    FROM {table}
    WHERE bucket >= %(since)s AND bucket < %(until)s
        AND (%(organization_id)s::text IS NULL OR organization_id = %(organization_id)s::text)
    GROUP BY 1, 2, 3
),
rows AS (
    SELECT
        time, id, max(model) AS model, sum(requests)::bigint AS requests, sum(successful)::bigint AS successful,
        sum(refused)::bigint AS refused, sum(failed)::bigint AS failed, sum(broken)::bigint AS broken,
        sum(cancelled)::bigint AS cancelled, sum(unknown)::bigint AS unknown, sum(input)::bigint AS input,
        sum(output)::bigint AS output, sum(total)::bigint AS total, sum(cached)::bigint AS cached,
        sum(duration) / sum(requests)::float8 AS duration,
        sum(first_token) / nullif(sum(first_tokens), 0)::float8 AS first_token, sum(busy) AS busy,
        coalesce(jsonb_object_agg(currency, cost) FILTER (WHERE currency IS NOT NULL), '{{}}') AS costs,
        sum(unpriced)::bigint AS unpriced
    FROM sums GROUP BY time, id
)
SELECT time, id, {name} AS name, requests, successful, refused, failed, broken, cancelled, unknown, input, output,
    total, cached, duration, first_token, busy, costs, unpriced
FROM rows ORDER BY time DESC, total DESC NULLS LAST, id LIMIT %(limit_rows)s
"""
_IDS: Final[Mapping[GroupBy, tuple[LiteralString, LiteralString]]] = {
    "model": ("model_id", "model"),
    "organization": ("organization_id", "(SELECT slug FROM organizations WHERE organization_id::text = id)"),
    "key": ("key_id", "(SELECT k.name FROM api_keys AS k WHERE key_id::text = id)"),
    "instance": ("instance_id", "NULL"),
}
_TABLES: Final[Mapping[Granularity, LiteralString]] = {
    "minute": "finops.inference_usage_1m",
    "hour": "finops.inference_usage_1h",
    "day": "finops.inference_usage_1d",
}
_LEDGER: Final = """
SELECT window_start, window_seconds, instance_id, worker_id, status, reason, proxy_requests, proxy_unknown_requests,
    proxy_input_tokens, proxy_output_tokens, engine_input_tokens, engine_output_tokens, engine_resets, gap_input_tokens,
    gap_output_tokens, gap_ratio, computed_at
FROM finops.token_ledger
WHERE window_start >= %(since)s AND window_start < %(until)s
    AND (%(instance_id)s::text IS NULL OR instance_id = %(instance_id)s)
    AND (%(status)s::text IS NULL OR status = %(status)s)
ORDER BY window_start DESC, instance_id, worker_id, window_seconds LIMIT %(limit_rows)s
"""


async def usage(call: Call[UsageQuery, Nothing]) -> Usage:
    """Sums."""
    query, now, most = call.query, datetime.now(UTC), call.parts.settings.rows_per_response
    since, until = _span(query, now)
    level = _level(query.granularity, since, until, now, call.parts.retention)
    since = _floor(since, level)
    organization = call.caller.only_organization
    rows = await call.parts.database.rows(
        _statement(query.group_by, level, query.granularity is not None),
        {
            "since": since,
            "until": until,
            "organization_id": None if organization is None else str(organization),
            "limit_rows": most + 1,
        },
    )
    shown = [UsageRow(*row) for row in rows[:most]]
    return Usage(since, until, query.group_by, query.granularity, len(rows) > most, shown)


async def ledger(call: Call[LedgerQuery, Nothing]) -> Ledger:
    """Windows."""
    query, most = call.query, call.parts.settings.rows_per_response
    since, until = _span(query, datetime.now(UTC))
    rows = await call.parts.database.rows(
        _LEDGER,
        {
            "since": since,
            "until": until,
            "instance_id": query.instance_id,
            "status": query.status,
            "limit_rows": most + 1,
        },
    )
    return Ledger(since, until, len(rows) > most, [LedgerRow(*row) for row in rows[:most]])


@lru_cache
def _statement(group_by: GroupBy, level: Granularity, over_time: bool) -> Composed:
    column, name = _IDS[group_by]
    return SQL(_USAGE).format(
        time=SQL("bucket" if over_time else "NULL::timestamptz"),
        id=SQL(column),
        table=SQL(_TABLES[level]),
        name=SQL(name),
    )


def _span(query: TimeQuery, now: datetime) -> tuple[datetime, datetime]:
    """From when until when. Raises ProblemError (422)."""
    errors = [
        FieldError(name, f"must be between the years {YEARS[0]} and {YEARS[-1]}")
        for name, moment in (("since", query.since), ("until", query.until))
        if moment is not None and moment.year not in YEARS
    ]
    if errors:
        raise unprocessable(errors)
    until = (query.until or now).astimezone(UTC)
    if query.since is not None and query.window_s is not None:
        raise unprocessable([FieldError("since", "either since or window_s, not both")])
    if query.since is not None:
        since = query.since.astimezone(UTC)
    else:
        try:
            since = until - timedelta(seconds=query.window_s or WINDOW_SECONDS)
        except OverflowError as error:
            raise unprocessable([FieldError("window_s", "reaches too far back")]) from error
    if since >= until:
        raise unprocessable([FieldError("since", "must be before until")])
    return since, until


def _level(
    asked: Granularity | None, since: datetime, until: datetime, now: datetime, retention: DatabaseSettings
) -> Granularity:
    """Whose sums answer it. Raises ProblemError (422) for sums that are not kept for so long."""
    kept_days: Mapping[Granularity, float] = {
        "minute": retention.retention_minute_days,
        "hour": retention.retention_hour_days,
        "day": float("inf"),
    }
    age_days = (now - since).total_seconds() / 86_400
    if asked is not None:
        if age_days > kept_days[asked]:
            raise unprocessable([FieldError("granularity", f"{asked} values are kept for {kept_days[asked]:g} days")])
        return asked
    seconds = (until - since).total_seconds()
    return next(one for one in FINEST_SECONDS if seconds <= FINEST_SECONDS[one] and age_days <= kept_days[one])


def _floor(moment: datetime, level: Granularity) -> datetime:
    """Start of the bucket."""
    minute = moment.replace(second=0, microsecond=0)
    if level == "minute":
        return minute
    return minute.replace(minute=0) if level == "hour" else minute.replace(hour=0, minute=0)


ENDPOINTS: Final = (
    Endpoint("GET", "/usage", "Requests, tokens and what they cost; others than operators see their own", TAG, usage),
    Endpoint(
        "GET",
        "/usage/ledger",
        "The proxy's tokens against the engines' own counters, by worker and window",
        TAG,
        ledger,
        operators=True,
    ),
)
