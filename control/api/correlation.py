"""One id from request to log line, and each request counted and timed."""

import re
import time
import uuid
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from control.metrics import HttpMetrics
from fleetpulse.telemetry import correlation_id

HEADER: Final = "X-Correlation-Id"
ACCEPTED_HEADERS: Final = (HEADER, "X-Request-Id")
# It goes into logs and headers as it is: no spaces, quotes or control characters, and short.
_VALID: Final = re.compile(r"[A-Za-z0-9._:~-]{1,128}")
# A client may send any word as the method; a label must not grow with it.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def correlated(metrics: HttpMetrics) -> Middleware:
    """Give every request its correlation id and measure it."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = _given(request) or uuid.uuid4().hex
        token = correlation_id.set(given)
        started = time.perf_counter()
        status = 499  # the client went away before there was an answer
        metrics.in_flight.inc()
        try:
            answer = await handler(request)
            status = answer.status
            answer.headers[HEADER] = given
            return answer
        finally:
            metrics.in_flight.dec()
            route = _route(request)
            metrics.requests.labels(route, _method(request), str(status)).inc()
            metrics.duration_seconds.labels(route).observe(time.perf_counter() - started)
            correlation_id.reset(token)

    return middleware


def _given(request: web.Request) -> str | None:
    """The client's own id, if it sent a usable one."""
    for header in ACCEPTED_HEADERS:
        value = request.headers.get(header)
        if value is not None and _VALID.fullmatch(value):
            return value
    return None


def _route(request: web.Request) -> str:
    """The route's pattern, never the path itself: paths are without number."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


def _method(request: web.Request) -> str:
    return request.method if request.method in _METHODS else "other"
