"""``/events``: what happens, as it happens, by server-sent events."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from aiohttp import web
from pydantic import Field

from control.access.principal import Principal
from control.api.authentication import identified
from control.api.call import Call
from control.api.correlation import HEADER
from control.api.endpoint import Endpoint
from control.api.event_log import Event, EventLog
from control.api.fields import Nothing, Query
from control.api.openapi import EVENT_STREAM
from control.api.problems import ProblemError
from control.database import UnavailableError
from fleetpulse.telemetry import correlation_id

LAST_EVENT_ID: Final = "Last-Event-ID"
RETRY_MILLISECONDS: Final = 2_000
# A client that takes nothing for so long is gone.
WRITE_SECONDS: Final = 30.0
_GAP: Final = msgspec.json.encode({"detail": "events were missed: read the current state anew"})


class EventsQuery(Query):
    """Where to go on."""

    last_event_id: Annotated[
        str | None,
        Field(
            max_length=100, description="As the header Last-Event-ID, which counts more, for who cannot send headers"
        ),
    ] = None


async def events(call: Call[EventsQuery, Nothing]) -> web.StreamResponse:
    """Follow the log until the client goes, its access ends, or the service stops."""
    log = call.parts.events
    if log.clients >= call.parts.settings.event_clients:
        raise ProblemError(503, "too many clients follow the events", headers={"Retry-After": "10"})
    response = web.StreamResponse(
        headers={
            "Content-Type": EVENT_STREAM,
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            HEADER: correlation_id.get() or "",
        }
    )
    log.clients += 1
    try:
        await response.prepare(call.request)
        # The client went, or takes nothing: there is nobody to tell.
        with contextlib.suppress(ConnectionError, TimeoutError):
            await _follow(call, log, response)
    finally:
        log.clients -= 1
    return response


async def _follow(call: Call[EventsQuery, Nothing], log: EventLog, response: web.StreamResponse) -> None:
    sequence, missed = log.resume(call.request.headers.get(LAST_EVENT_ID) or call.query.last_event_id)
    await _write(response, f"retry: {RETRY_MILLISECONDS}\n\n".encode())
    # With an id from the start, who is cut off before anything happened is told of what did meanwhile.
    await _write(response, _message(log.identify(sequence), "begin", b"{}"))
    while not log.closed:
        principal = await _still_admitted(call)
        if principal is None:
            return
        if missed or not log.has_all_after(sequence):
            missed, sequence = False, log.newest
            await _write(response, _message(log.identify(sequence), "gap", _GAP))
        found = log.after(sequence)
        sequence = found[-1].sequence if found else sequence
        await _write(response, _messages(log, found, principal) or b":\nid: %b\n\n" % log.identify(sequence).encode())
        await log.wait(sequence, call.parts.settings.event_interval_seconds)


async def _still_admitted(call: Call[EventsQuery, Nothing]) -> Principal | None:
    """Who listens; None once the key is revoked or the session over."""
    try:
        principal = await identified(call.request, call.parts.admission)
    except ProblemError:
        return None
    except UnavailableError:
        # It was admitted, and nobody can say otherwise now.
        return call.caller
    return principal if principal.may("read") else None


def _messages(log: EventLog, found: Sequence[Event], principal: Principal) -> bytes:
    """Those that the listener may see. Without any, a comment keeps the connection alive, and the id moves on, so that
    what others did is nothing missed."""
    only = principal.only_organization
    seen = [event for event in found if only is None or event.organization_id == str(only)]
    return b"".join(_message(log.identify(event.sequence), event.kind, event.data) for event in seen)


def _message(identity: str, kind: str, data: bytes) -> bytes:
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (identity.encode(), kind.encode(), data)


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_SECONDS):
        await response.write(data)


ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/events",
        "Lifecycle and worker events as they happen",
        "Fleet",
        events,
        answer=str,
        contents=(EVENT_STREAM,),
    ),
)
