"""From a request to its handler and back: checked, in a transaction if it changes something, answered as JSON."""

from typing import Any

import msgspec
import psycopg
from aiohttp import web
from aiohttp.typedefs import Handler

from control.access.principal import Principal
from control.actions import log_action
from control.api import idempotency
from control.api.authentication import PRINCIPAL
from control.api.call import Call, Parts
from control.api.endpoint import JSON, Endpoint
from control.api.endpoint import Handler as Answering
from control.api.fields import Nothing
from control.api.idempotency import Done
from control.api.openapi import EVENT_STREAM
from control.api.problems import ProblemError
from control.api.validation import body_values, path_values, query_values


def add(application: web.Application, endpoint: Endpoint, parts: Parts) -> None:
    """Route an endpoint, unless another part does."""
    if endpoint.handler is None:
        return
    handler = _handler(endpoint, endpoint.handler, parts)
    if endpoint.method == "GET":
        # The head of a stream without its body would never end.
        application.router.add_get(endpoint.path, handler, allow_head=EVENT_STREAM not in endpoint.contents)
    else:
        application.router.add_route(endpoint.method, endpoint.path, handler)


def _handler(endpoint: Endpoint, answer: Answering, parts: Parts) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        principal = request.get(PRINCIPAL)
        _require_scope(endpoint, principal)
        path = path_values(request)
        query = query_values(request, endpoint.query)
        body, data = await body_values(request, endpoint.body) if endpoint.has_body else (Nothing(), b"")
        call: Call[Any, Any] = Call(request, parts, path, query, body, principal, None)
        if not endpoint.needs_transaction:
            return _response(endpoint, await answer(call))
        return await _in_transaction(endpoint, answer, call, data)

    return handle


def _require_scope(endpoint: Endpoint, principal: Principal | None) -> None:
    """Raises ProblemError (403)."""
    if endpoint.scope is None or principal is None:
        return
    if endpoint.scope != "any" and not principal.may(endpoint.scope):
        raise ProblemError(403, f"this needs the scope {endpoint.scope}")
    if endpoint.operators and not principal.is_operator:
        raise ProblemError(403, "this is for the operators: keys and users of the organisation default")


async def _in_transaction(
    endpoint: Endpoint, answer: Answering, call: Call[Any, Any], body: bytes
) -> web.StreamResponse:
    parts = call.parts
    try:
        async with parts.database.transaction() as connection:
            inner: Call[Any, Any] = Call(
                call.request, parts, call.path, call.query, call.body, call.principal, connection
            )

            async def work() -> Done:
                done = _done(endpoint, await answer(inner))
                await _log(endpoint, inner)
                return done

            if endpoint.creates:
                done = await idempotency.once(
                    connection, call.request, call.caller, body, parts.settings.idempotency_seconds, work
                )
            else:
                done = await work()
    except (psycopg.errors.UniqueViolation, psycopg.errors.ForeignKeyViolation) as error:
        raise ProblemError(409, endpoint.conflict or "this contradicts what is there already") from error
    # Whatever was changed may be access; the next request here must not see what was before.
    parts.admission.forget()
    return _sent(endpoint, done)


async def _log(endpoint: Endpoint, call: Call[Any, Any]) -> None:
    if endpoint.act is None:
        return
    detail = {name: str(value) for name, value in call.path.items()} | call.body.model_dump(mode="json")
    await log_action(call.connection, endpoint.act, succeeded=True, actor=call.caller.actor, detail=detail)


def _done(endpoint: Endpoint, answer: Any) -> Done:
    if answer is None:
        return Done(204, b"", b"")
    data = msgspec.json.encode(answer)
    once = endpoint.shown_once
    kept = msgspec.json.encode(msgspec.structs.replace(answer, **{once: None})) if once else data
    return Done(endpoint.status, data, kept)


def _sent(endpoint: Endpoint, done: Done) -> web.Response:
    if done.status == 204:
        return web.Response(status=204)
    response = web.Response(body=done.answer, status=done.status, content_type=JSON)
    if endpoint.location is not None:
        response.headers["Location"] = endpoint.location.format(**msgspec.json.decode(done.answer))
    if done.replayed:
        response.headers[idempotency.REPLAYED] = "true"
    return response


def _response(endpoint: Endpoint, answer: Any) -> web.StreamResponse:
    return answer if isinstance(answer, web.StreamResponse) else _sent(endpoint, _done(endpoint, answer))
