"""``/gpu/activity``, ``/system/activity`` and ``/engine/activity``: what the database holds, as rows of numbers."""

import asyncio
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Any, Final

import msgspec
from aiohttp import web
from psycopg.sql import SQL, Composable, Composed, Identifier

from control.api import grouped_statements, parameters, statements
from control.api.call import Call
from control.api.endpoint import Endpoint, Handler
from control.api.families import ENGINE_ACTIVITY, GPU_ACTIVITY, SYSTEM_ACTIVITY, Family, Grouping
from control.api.fields import Nothing
from control.api.parameters import (
    LEVELS,
    WIDTHS,
    ActivityParameters,
    EngineQuery,
    GpuQuery,
    Granularity,
    SystemQuery,
)
from control.api.statements import STATEMENTS_KEPT
from control.database import Row

# Between so many values others get their turn: a few milliseconds.
VALUES_AT_ONCE: Final = 20_000
_COLUMNS: Final = "SELECT {columns} FROM ({rows}) AS row"
# What the rows' keys stand for, told once: beside each row names would be most of an answer of one field.
_NAMED: Final = """
SELECT shown.*, named.*
FROM (SELECT array_agg({key}) AS keys, {columns} FROM ({rows}) AS row) AS shown
CROSS JOIN LATERAL (
    SELECT array_agg({key}), {names} FROM {identities} WHERE {named}
) AS named
"""
# Where nobody in particular is asked for: of all that there ever were, few may be shown.
_SHOWN: Final = "{key} IN (SELECT unnest(shown.keys))"


async def gpu(call: Call[GpuQuery, Nothing]) -> web.Response:
    """Of GPUs."""
    return await _answer(call, parameters.activity(call.query, GPU_ACTIVITY, call.parts.retention), GPU_ACTIVITY)


async def system(call: Call[SystemQuery, Nothing]) -> web.Response:
    """Of hosts."""
    return await _answer(call, parameters.activity(call.query, SYSTEM_ACTIVITY, call.parts.retention), SYSTEM_ACTIVITY)


async def engine(call: Call[EngineQuery, Nothing]) -> web.Response:
    """Of models on engines."""
    return await _answer(call, parameters.activity(call.query, ENGINE_ACTIVITY, call.parts.retention), ENGINE_ACTIVITY)


async def _answer(call: Call[Any, Nothing], asked: ActivityParameters, family: Family) -> web.Response:
    most = call.parts.settings.rows_per_response
    now = datetime.now(UTC)
    (columns,) = await call.parts.database.rows(
        statement(family, asked), query_parameters(asked, now, most), binary=True
    )
    return await _response(family, asked, now, columns, most)


@lru_cache(STATEMENTS_KEPT)
def _shown_fields(
    family: Family, granularity: Granularity, group: Grouping | None, wanted: frozenset[str] | None
) -> tuple[str, ...]:
    """Fields of a row, in order."""
    measured = (name for name, _, _ in family.measured(group, coarse=granularity != "second"))
    return (*family.identity(group), *(name for name in measured if wanted is None or name in wanted))


def statement(family: Family, asked: ActivityParameters) -> bytes:
    """The query that answers it, in one row: an array a field, null where there is nothing; where rows have a key, the
    keys come first, and last each key once and an array a name. Rows of their own cost the driver, and rows as JSON the
    database, several times as much."""
    is_of_some = asked.instance_ids is not None or asked.worker_ids is not None
    return _statement(family, asked.granularity, asked.group, asked.fields, is_of_some)


@lru_cache(STATEMENTS_KEPT)
def _statement(
    family: Family, granularity: Granularity, group: Grouping | None, wanted: frozenset[str] | None, is_of_some: bool
) -> bytes:
    level = LEVELS[granularity]
    if group is None:
        rows = statements.activity(family, level, wanted)
    else:
        rows = grouped_statements.activity(family, group, level, wanted)
    names = dict(family.names(group))
    fields = (field for field in _shown_fields(family, granularity, group, wanted) if field not in names)
    parts: dict[str, Composable] = {"columns": _arrays(fields), "rows": rows}
    if not names:
        return SQL(_COLUMNS).format(**parts).as_bytes()
    key = Identifier(family.key if group is None else "worker_key")
    parts |= {
        "key": key,
        "named": SQL(statements.ASKED) if is_of_some else SQL(_SHOWN).format(key=key),
        "names": _arrays(names.values()),
        "identities": SQL(family.identities if group is None else "workers"),
    }
    return SQL(_NAMED).format(**parts).as_bytes()


def _arrays(columns: Iterable[str]) -> Composed:
    return SQL(", ").join(SQL("array_agg({})").format(Identifier(column)) for column in columns)


def query_parameters(asked: ActivityParameters, now: datetime, rows_per_response: int) -> dict[str, Any]:
    """Parameters of the statement: one row more than may be shown tells whether there are more."""
    from_time, width = now - timedelta(seconds=asked.window_seconds), WIDTHS[asked.granularity]
    return {
        "from_time": from_time,
        "to_time": now,
        "limit_rows": rows_per_response + 1,
        "instance_ids": asked.instance_ids,
        "worker_ids": asked.worker_ids,
        "gap": WIDTHS["second"],
        "width": width,
        # Computed here, because partitions are chosen while planning only by what needs no computing.
        "from_bucket": from_time - width,
        "last_full": now - width,
        "seconds": width.total_seconds(),
    }


async def _response(family: Family, asked: ActivityParameters, now: datetime, columns: Row, most: int) -> web.Response:
    """The answer to columns whose newest rows come first; of one row too many, the oldest is left out."""
    count = len(columns[0] or ())
    head = {
        "window_s": asked.window_seconds,
        "granularity": asked.granularity,
        "from": now - timedelta(seconds=asked.window_seconds),
        "to": now,
        "truncated": count > most,
    }
    parts, rows = [], rows_of(family, asked, columns, most)
    while some := list(islice(rows, VALUES_AT_ONCE // len(columns) + 1)):
        parts.append(msgspec.json.encode(some)[1:-1])
        await asyncio.sleep(0)
    body = msgspec.json.encode(head)[:-1] + b',"rows":[' + b",".join(parts) + b"]}"
    return web.Response(body=body, content_type="application/json")


def rows_of(family: Family, asked: ActivityParameters, columns: Row, most: int) -> Iterator[msgspec.Struct]:
    """The newest rows of what the statement answered, at most so many, the oldest of them first."""
    fields = _shown_fields(family, asked.granularity, asked.group, asked.fields)
    names = family.names(asked.group)
    if names:
        keys, time, *measured, named_keys = columns[: -len(names)]
        by_key = (dict(zip(named_keys or (), name or (), strict=True)) for name in columns[-len(names) :])
        columns = (time, *([name[key] for key in keys or ()] for name in by_key), *measured)
    newest = (reversed((column or ())[:most]) for column in columns)
    return map(_row(fields), *newest)


@lru_cache(STATEMENTS_KEPT)
def _row(fields: tuple[str, ...]) -> type[msgspec.Struct]:
    """A class of rows: made and encoded in a quarter of the time that a dictionary takes."""
    return msgspec.defstruct("Row", fields, gc=False)


def schema(family: Family) -> dict[str, Any]:
    """JSON Schema of the answer."""
    time = {"type": "string", "format": "date-time"}
    properties = {
        "window_s": {"type": "integer"},
        "granularity": {"type": "string", "enum": list(LEVELS)},
        "from": time,
        "to": time,
        "truncated": {"type": "boolean", "description": "Whether there were more rows; the newest are answered"},
        "rows": {"type": "array", "items": {"anyOf": [_row_schema(family, group) for group in family.groups()]}},
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def _row_schema(family: Family, group: Grouping | None) -> dict[str, Any]:
    """Which measured fields there are depends on the granularity and on what was asked for."""
    identity: dict[str, Any] = {name: {"type": ["string", "null"]} for name in family.identity(group)}
    identity["time"] = {"type": "string", "format": "date-time"}
    identity |= {name: {"type": ["integer", "null"]} for name in ("gpu_index", "series_count") if name in identity}
    measured = {
        name: {"type": ["number", "null"], "description": f"{help_text} ({unit})"}
        for name, unit, help_text in family.measured(group, coarse=True)
    }
    return {"type": "object", "properties": identity | measured, "required": list(identity)}


def _endpoint(family: Family, handler: Handler) -> Endpoint:
    summary = f"What the database holds of each {family.name}, or of many together, as rows over time"
    return Endpoint(
        "GET",
        f"/{family.name}/activity",
        summary,
        "Activity",
        handler,
        operators=True,
        answer=schema(family),
    )


ENDPOINTS: Final = (
    _endpoint(GPU_ACTIVITY, gpu),
    _endpoint(SYSTEM_ACTIVITY, system),
    _endpoint(ENGINE_ACTIVITY, engine),
)
