"""``/usage/costs``: what machines cost while they served, were idle, not ready, dead, or nobody's."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Final, Literal, LiteralString

import msgspec
from psycopg.sql import SQL, Composed
from pydantic import Field

from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Identity, Nothing
from control.api.resources.usage import TABLES
from control.api.resources.usage import TAG as USAGE
from control.api.resources.usage_time import TimeQuery, floor, level_of, span

Part = Literal["serving", "idle", "unready", "dead", "orphan"]
CostsBy = Literal["machine", "model"]
PARTS: Final[tuple[Part, ...]] = ("serving", "idle", "unready", "dead", "orphan")


class CostQuery(TimeQuery):
    """Of whom."""

    group_by: Annotated[CostsBy, Field(description="A row for each of these")] = "machine"
    instance_id: Annotated[Identity | None, Field(description="Only this instance")] = None


class CostRow(msgspec.Struct, frozen=True):
    """A machine's seconds by what it was, and those at its price; or those of all machines of a model, whose own
    ids, type and price are then null. ``costs`` and ``currency`` are null without a price, ``model`` without a model.

    serving: ready, with a request at its engine. idle: ready, without. unready: from its boot until it is ready, and
    while it is ended. dead: after a failed start, or its worker died. orphan: nobody's, as long as we have known of it.
    """

    instance_id: str | None
    provider: str | None
    instance_type: str | None
    machine_id: str | None
    model: str | None
    price_per_hour: float | None
    currency: str | None
    machines: int
    seconds: dict[Part, float]
    costs: dict[Part, float] | None
    idle_ratio: float
    """Share of all its seconds in which it was idle."""
    input_tokens: int | None
    output_tokens: int | None
    """Null where no request is known of."""
    cost_per_million_tokens: float | None
    """Of tokens in and out together, at all that the machine cost; null without tokens or without a price."""


class Costs(msgspec.Struct, frozen=True):
    """Rows with the most seconds first. ``totals`` are the costs by currency, of all rows shown."""

    since: datetime
    until: datetime
    group_by: CostsBy
    truncated: bool
    totals: dict[str, dict[Part, float]]
    rows: Sequence[CostRow]


# A machine costs from its boot until it is gone. Requests of a moment share it, so busy seconds never overlap.
_COSTS: Final = """
WITH steps AS (
    SELECT
        t.instance_id, t.to_state AS state, t.at AS from_time,
        coalesce(lead(t.at) OVER (PARTITION BY t.instance_id ORDER BY t.version), 'infinity') AS to_time
    FROM instance_transitions AS t JOIN instances AS i USING (instance_id)
    WHERE i.created_at < %(until)s AND (i.terminated_at IS NULL OR i.terminated_at > %(since)s)
        AND (%(organization_id)s::uuid IS NULL OR i.organization_id = %(organization_id)s)
        AND (%(instance_id)s::text IS NULL OR i.instance_id = %(instance_id)s)
),
spans AS (
    SELECT
        instance_id, state,
        extract(epoch FROM least(to_time, %(until)s) - greatest(from_time, %(since)s))::float8 AS seconds
    FROM steps WHERE to_time > %(since)s AND from_time < %(until)s
),
lives AS (
    SELECT
        instance_id, coalesce(sum(seconds) FILTER (WHERE state IN ('ready', 'draining')), 0) AS ready,
        coalesce(sum(seconds) FILTER (WHERE state IN ('booting', 'installing', 'starting', 'terminating')), 0)
            AS unready,
        coalesce(sum(seconds) FILTER (WHERE state IN ('startup_failed', 'worker_dead')), 0) AS dead
    FROM spans GROUP BY instance_id
),
busy AS (
    SELECT
        instance_id, sum(busy_seconds) AS seconds, sum(input_tokens) AS input, sum(output_tokens) AS output
    FROM {usage}
    WHERE bucket >= %(since)s AND bucket < %(until)s GROUP BY instance_id
),
rows AS (
    SELECT
        i.instance_id, i.provider, i.instance_type, i.machine_id, i.model_id, i.price_per_hour::float8 AS price,
        i.currency, busy.input, busy.output,
        least(coalesce(busy.seconds, 0), ready) AS serving, greatest(ready - coalesce(busy.seconds, 0), 0) AS idle,
        unready, dead, 0::float8 AS orphan
    FROM lives JOIN instances AS i USING (instance_id) LEFT JOIN busy USING (instance_id)
    WHERE ready + unready + dead > 0
    UNION ALL
    SELECT
        o.instance_id, o.provider, o.instance_type, o.machine_id, i.model_id, o.price_per_hour::float8, o.currency,
        NULL, NULL, 0, 0, 0, 0,
        extract(epoch FROM least(resolved_at, %(until)s) - greatest(first_seen_at, %(since)s))::float8
    FROM orphan_machines AS o LEFT JOIN instances AS i USING (instance_id)
    WHERE first_seen_at < %(until)s AND (resolved_at IS NULL OR resolved_at > %(since)s)
        AND (%(organization_id)s::uuid IS NULL OR i.organization_id = %(organization_id)s)
        AND (%(instance_id)s::text IS NULL OR o.instance_id = %(instance_id)s)
)
SELECT
    {who}, hugging_face_id, {price}, CASE WHEN price IS NOT NULL THEN currency END, count(*), sum(input)::bigint,
    sum(output)::bigint, sum(serving), sum(idle), sum(unready), sum(dead), sum(orphan), sum(price * serving) / 3600,
    sum(price * idle) / 3600, sum(price * unready) / 3600, sum(price * dead) / 3600, sum(price * orphan) / 3600
FROM rows LEFT JOIN models USING (model_id)
GROUP BY 1, 2, 3, 4, 5, 6, 7
ORDER BY sum(serving + idle + unready + dead + orphan) DESC, 1, 4, 5, 7 LIMIT %(limit_rows)s
"""
_WHO: Final[Mapping[CostsBy, tuple[LiteralString, LiteralString]]] = {
    "machine": ("instance_id, provider, instance_type, machine_id", "price"),
    "model": ("NULL::text, NULL::text, NULL::text, NULL::text", "NULL::float8"),
}


async def costs(call: Call[CostQuery, Nothing]) -> Costs:
    """By machine, or by model."""
    query, now, most = call.query, datetime.now(UTC), call.parts.settings.rows_per_response
    since, until = span(query, now)
    level = level_of(None, since, until, now, call.parts.retention)
    since = floor(since, level)
    found = await call.parts.database.rows(
        _statement(query.group_by, TABLES[level]),
        {
            "since": since,
            "until": min(until, now),
            "organization_id": call.caller.only_organization,
            "instance_id": query.instance_id,
            "limit_rows": most + 1,
        },
    )
    rows = [_row(*row) for row in found[:most]]
    return Costs(since, until, query.group_by, len(found) > most, totals(rows), rows)


@lru_cache
def _statement(group_by: CostsBy, usage: LiteralString) -> Composed:
    who, price = _WHO[group_by]
    return SQL(_COSTS).format(usage=SQL(usage), who=SQL(who), price=SQL(price))


def _row(
    instance_id: str | None,
    provider: str | None,
    instance_type: str | None,
    machine_id: str | None,
    model: str | None,
    price: float | None,
    currency: str | None,
    machines: int,
    input_tokens: int | None,
    output_tokens: int | None,
    *numbers: float,
) -> CostRow:
    seconds = dict(zip(PARTS, numbers[: len(PARTS)], strict=True))
    costs = None if currency is None else dict(zip(PARTS, numbers[len(PARTS) :], strict=True))
    tokens = (input_tokens or 0) + (output_tokens or 0)
    return CostRow(
        instance_id,
        provider,
        instance_type,
        machine_id,
        model,
        price,
        currency,
        machines,
        seconds,
        costs,
        idle_ratio=seconds["idle"] / (sum(seconds.values()) or 1.0),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cost_per_million_tokens=sum(costs.values()) / tokens * 1e6 if costs is not None and tokens else None,
    )


def totals(rows: Iterable[CostRow]) -> dict[str, dict[Part, float]]:
    """By currency; what has no price is in none."""
    sums: dict[str, dict[Part, float]] = defaultdict(lambda: dict.fromkeys(PARTS, 0.0))
    for row in rows:
        if row.costs is not None and row.currency is not None:
            for part, cost in row.costs.items():
                sums[row.currency][part] += cost
    return dict(sums)


ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/usage/costs",
        "What machines cost while they served, were idle, not ready, dead, or nobody's",
        USAGE,
        costs,
    ),
)
