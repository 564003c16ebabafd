"""``/usage`` and ``/usage/ledger``: tokens and money, and whether engines counted the same tokens."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Final, Literal, LiteralString

import msgspec
from psycopg.sql import SQL, Composed
from pydantic import Field

from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Identity, Nothing
from control.api.resources.usage_time import Granularity, TimeQuery, floor, level_of, span

TAG: Final = "Usage"
GroupBy = Literal["model", "organization", "key", "instance"]


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
TABLES: Final[Mapping[Granularity, LiteralString]] = {
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
    since, until = span(query, now)
    level = level_of(query.granularity, since, until, now, call.parts.retention)
    since = floor(since, level)
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
    since, until = span(query, datetime.now(UTC))
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
        table=SQL(TABLES[level]),
        name=SQL(name),
    )


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
