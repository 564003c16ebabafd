"""``/gpu/activity``, ``/system/activity`` and ``/engine/activity``: what the database holds, as rows of numbers."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from aiohttp import web

from control.api import parameters, statements
from control.api.call import Call
from control.api.endpoint import Endpoint, Handler
from control.api.families import FAMILIES, Family
from control.api.fields import Nothing
from control.api.parameters import LEVELS, WIDTHS, ActivityParameters, ActivityQuery


def _handler(family: Family) -> Handler:
    async def activity(call: Call[ActivityQuery, Nothing]) -> web.Response:
        asked = parameters.activity(call.query, call.parts.retention)
        most = call.parts.settings.rows_per_response
        now = datetime.now(UTC)
        values = query_parameters(asked, now, most)
        rows = await call.parts.database.rows(statements.activity(family, LEVELS[asked.granularity]), values)
        return _response(asked, now, [row[0] for row in rows], most)

    return activity


def query_parameters(asked: ActivityParameters, now: datetime, rows_per_response: int) -> dict[str, Any]:
    """Parameters of the statement: one row more than may be shown tells whether there are more."""
    return {
        "from_time": now - timedelta(seconds=asked.window_seconds),
        "to_time": now,
        "limit_rows": rows_per_response + 1,
        "instance_ids": asked.instance_ids,
        "worker_ids": asked.worker_ids,
        "gap": WIDTHS["second"],
        "width": WIDTHS[asked.granularity],
    }


def _response(asked: ActivityParameters, now: datetime, rows: Sequence[str], most: int) -> web.Response:
    """The rows are JSON already. Of too many, the oldest are left out."""
    head = {
        "window_s": asked.window_seconds,
        "granularity": asked.granularity,
        "from": (now - timedelta(seconds=asked.window_seconds)).isoformat(),
        "to": now.isoformat(),
        "truncated": len(rows) > most,
    }
    body = msgspec.json.encode(head)[:-1] + b',"rows":[' + ",".join(rows[-most:]).encode() + b"]}"
    return web.Response(body=body, content_type="application/json")


def schema(family: Family) -> dict[str, Any]:
    """JSON Schema of the answer. Fields that only coarse granularities have are not required."""
    texts: dict[str, Any] = {name: {"type": ["string", "null"]} for name in family.identity_fields()}
    texts["time"] = {"type": "string", "format": "date-time"}
    if "gpu_index" in texts:
        texts["gpu_index"] = {"type": ["integer", "null"]}
    measured = {
        name: {"type": ["number", "null"], "description": f"{help_text} ({unit})"}
        for name, unit, help_text in family.fields(coarse=True)
    }
    row = {
        "type": "object",
        "properties": texts | measured,
        "required": [*texts, *(name for name, _, _ in family.fields(coarse=False))],
    }
    time = {"type": "string", "format": "date-time"}
    properties = {
        "window_s": {"type": "integer"},
        "granularity": {"type": "string", "enum": list(LEVELS)},
        "from": time,
        "to": time,
        "truncated": {"type": "boolean", "description": "Whether there were more rows; the newest are answered"},
        "rows": {"type": "array", "items": row},
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


ENDPOINTS: Final = tuple(
    Endpoint(
        "GET",
        f"/{family.name}/activity",
        f"What the database holds of each {family.name}, as rows over time",
        "Activity",
        _handler(family),
        operators=True,
        answer=schema(family),
    )
    for family in FAMILIES
)
