"""Engines that ask for a key."""

import aiohttp
from aiohttp import web

from control.jobs.framework.environment import worker_environment
from control.jobs.framework.probes import Probes
from fleetpulse.http import serving
from fleetpulse.settings import JobSettings, StreamSettings

KEY = "sk-engine"


async def models(request: web.Request) -> web.Response:
    given = request.headers.get("Authorization") == f"Bearer {KEY}"
    return web.json_response({"data": []}, status=200 if given else 401)


async def test_an_engine_is_asked_with_its_key() -> None:
    app = web.Application()
    app.router.add_get("/v1/models", models)
    async with serving(app, "127.0.0.1", 0) as port, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/v1/models"
        assert (await Probes(JobSettings(), session).engine(url)).status == 401
        probes = Probes(JobSettings(engine_api_key=KEY), session)
        assert (await probes.engine(url)).succeeded
        # An agent is not told it.
        assert (await Probes(JobSettings(engine_api_key=KEY), session).http(url)).status == 401


def test_agents_of_new_workers_get_the_key() -> None:
    environment = worker_environment(JobSettings(engine_api_key=KEY), StreamSettings())
    assert environment["FLEETPULSE_AGENT_ENGINE_API_KEY"] == KEY
