"""``/gpu/activity``, ``/system/activity`` and ``/engine/activity``: what the database holds, as rows of numbers."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from control.api import parameters, statements
from control.api.families import FAMILIES, Family
from control.api.parameters import LEVELS, WIDTHS, ActivityParameters
from control.database import Database
from fleetpulse.settings import DatabaseSettings


def add_routes(
    application: web.Application, database: Database, retention: DatabaseSettings, rows_per_response: int
) -> None:
    """One route a family."""

    def handler(family: Family) -> Handler:
        async def activity(request: web.Request) -> web.Response:
            asked = parameters.activity(request, retention)
            now = datetime.now(UTC)
            values = query_parameters(asked, now, rows_per_response)
            rows = await database.rows(statements.activity(family, LEVELS[asked.granularity]), values)
            return _response(asked, now, [row[0] for row in rows], rows_per_response)

        return activity

    for family in FAMILIES:
        application.router.add_get(f"/{family.name}/activity", handler(family))


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
