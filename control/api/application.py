"""The service's HTTP application: what wraps every request, and which endpoints there are."""

from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry

import fleetpulse
from control.api import activity, workers
from control.api.authentication import authenticated
from control.api.correlation import correlated
from control.api.problems import problems
from control.database import Database
from control.directory import Directory
from control.metrics import HttpMetrics
from fleetpulse.http import Readiness, add_health_endpoints
from fleetpulse.settings import ControlSettings, DatabaseSettings
from fleetpulse.stream.consumer import StreamReader
from fleetpulse.stream.fleet_view import FleetView


@dataclass(frozen=True, slots=True)
class Parts:
    """What the endpoints answer from."""

    database: Database
    directory: Directory
    view: FleetView
    reader: StreamReader


def application(
    settings: ControlSettings,
    retention: DatabaseSettings,
    parts: Parts,
    registry: CollectorRegistry,
    missing: Readiness,
) -> web.Application:
    """All endpoints."""
    # From the outside in: every answer, a refusal too, has its correlation id, is counted, and is a problem if wrong.
    app = web.Application(middlewares=[correlated(HttpMetrics(registry)), problems, authenticated(settings)])
    add_health_endpoints(app, registry, missing)
    activity.add_routes(app, parts.database, retention, settings.rows_per_response)
    workers.add_routes(app, parts.view, parts.directory, parts.reader)
    app.router.add_get("/", _index([resource.canonical for resource in app.router.resources()]))
    return app


def _index(paths: Sequence[str]) -> Handler:
    async def index(_: web.Request) -> web.Response:
        return web.json_response(
            {"service": "fleetpulse control", "version": fleetpulse.__version__, "endpoints": list(paths)}
        )

    return index
