"""The service's HTTP application: what wraps every request, and which endpoints there are."""

from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry

from control.api import routing
from control.api.authentication import authenticated
from control.api.call import Parts
from control.api.correlation import correlated
from control.api.endpoint import Endpoint
from control.api.problems import problems
from control.api.resources import (
    actions,
    activity,
    alerts,
    api_keys,
    catalogue,
    costs,
    deployments,
    documentation,
    events,
    health,
    instance_history,
    instance_steps,
    instances,
    model_access,
    models,
    offerings,
    organizations,
    progress,
    runtime_models,
    sessions,
    usage,
    users,
    why,
    workers,
)
from control.console import pages
from control.metrics import HttpMetrics
from fleetpulse.http import Readiness, add_health_endpoints

# In the order in which the documentation shows them.
RESOURCES: Final = (
    deployments,
    instances,
    progress,
    instance_history,
    why,
    instance_steps,
    workers,
    runtime_models,
    events,
    alerts,
    actions,
    activity,
    usage,
    costs,
    catalogue,
    models,
    offerings,
    model_access,
    organizations,
    api_keys,
    users,
    sessions,
    health,
    pages,
)


def all_endpoints() -> tuple[Endpoint, ...]:
    """Every endpoint."""
    found: list[Endpoint] = []
    for resource in RESOURCES:
        found += resource.ENDPOINTS
    return (*found, *documentation.endpoints(found))


def application(parts: Parts, registry: CollectorRegistry, missing: Readiness) -> web.Application:
    """All endpoints."""
    endpoints = all_endpoints()
    open_routes = frozenset((one.method, one.path) for one in endpoints if one.scope is None)
    # From the outside in: every answer, a refusal too, has its correlation id, is counted, and is a problem if wrong.
    app = web.Application(
        middlewares=[
            correlated(HttpMetrics(registry)),
            problems,
            pages.for_people,
            authenticated(parts.admission, open_routes),
        ],
        client_max_size=parts.settings.body_bytes,
    )
    add_health_endpoints(app, registry, missing)
    for endpoint in endpoints:
        routing.add(app, endpoint, parts)

    async def end_streams(_: web.Application) -> None:
        parts.events.close()

    app.on_shutdown.append(end_streams)
    return app
