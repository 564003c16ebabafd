"""The mock cloud's HTTP API."""

from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from control.providers.mock.cloud import Cloud, RefusedError
from control.providers.mock.messages import Faults, NewMachine, Refusal, Runtime
from control.providers.mock.offers import CATALOGUE
from fleetpulse.local.processes import StartError

_CLOUD: Final = web.AppKey("cloud", Cloud)
Message = TypeVar("Message")


def application(cloud: Cloud) -> web.Application:
    """The endpoints."""
    app = web.Application(middlewares=[_refusals], client_max_size=2**20)
    app[_CLOUD] = cloud
    app.add_routes(
        [
            web.get("/healthz", _healthz),
            web.get("/catalogue", _catalogue),
            web.get("/machines", _machines),
            web.post("/machines", _create),
            web.get("/machines/{id}", _machine),
            web.delete("/machines/{id}", _delete),
            web.post("/machines/{id}/runtime", _start_runtime),
            web.delete("/machines/{id}/runtime", _stop_runtime),
            web.post("/machines/{id}/faults", _faults),
            web.post("/preset", _preset),
            web.get("/volumes", _volumes),
            web.delete("/volumes/{id}", _delete_volume),
        ]
    )
    return app


@web.middleware
async def _refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RefusedError as error:
        return _json(Refusal(str(error)), error.status)
    except StartError as error:
        return _json(Refusal(str(error)), 503)


async def _healthz(_: web.Request) -> web.Response:
    return _json({"status": "ok"})


async def _catalogue(_: web.Request) -> web.Response:
    return _json(CATALOGUE)


async def _machines(request: web.Request) -> web.Response:
    return _json(request.app[_CLOUD].machines())


async def _create(request: web.Request) -> web.Response:
    return _json(await request.app[_CLOUD].create(await _body(request, NewMachine)), 201)


async def _machine(request: web.Request) -> web.Response:
    return _json(request.app[_CLOUD].machine(request.match_info["id"]))


async def _delete(request: web.Request) -> web.Response:
    await request.app[_CLOUD].delete(request.match_info["id"])
    return web.Response(status=204)


async def _start_runtime(request: web.Request) -> web.Response:
    wanted = await _body(request, Runtime)
    return _json(await request.app[_CLOUD].start_runtime(request.match_info["id"], wanted))


async def _stop_runtime(request: web.Request) -> web.Response:
    return _json(await request.app[_CLOUD].stop_runtime(request.match_info["id"]))


async def _faults(request: web.Request) -> web.Response:
    return _json(await request.app[_CLOUD].change(request.match_info["id"], await _body(request, Faults)))


async def _preset(request: web.Request) -> web.Response:
    return _json(request.app[_CLOUD].preset(await _body(request, dict[str, Any])))


async def _volumes(request: web.Request) -> web.Response:
    return _json(request.app[_CLOUD].volumes())


async def _delete_volume(request: web.Request) -> web.Response:
    request.app[_CLOUD].delete_volume(request.match_info["id"])
    return web.Response(status=204)


async def _body(request: web.Request, kind: type[Message]) -> Message:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except msgspec.DecodeError as error:
        raise RefusedError(f"the body: {error}", 422) from error


def _json(content: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), status=status, content_type="application/json")
