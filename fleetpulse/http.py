"""The HTTP endpoints every service has, and how a service is run and stopped."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from fleetpulse.settings import SettingsError

Readiness = Callable[[], Mapping[str, str]]
"""What a service still lacks, by part, each with the reason in words; empty when it can do its work."""


def require_strict_parser() -> None:
    """For services that strangers reach, perhaps through another proxy. Raises SettingsError.

    aiohttp's parser in Python takes a bare CR within a chunk's extension. What stands before it and takes that for the
    end of a line sees other requests than we do: request smuggling.
    """
    if HttpRequestParser is HttpRequestParserPy:
        raise SettingsError(
            "aiohttp runs without its compiled HTTP parser: unset AIOHTTP_NO_EXTENSIONS, or install aiohttp's wheel"
        )


def add_health_endpoints(application: web.Application, registry: CollectorRegistry, missing: Readiness) -> None:
    """``/healthz`` (the process answers), ``/readyz`` (it can do its work, else 503 with reasons), ``/metrics``."""

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        lacking = missing()
        status = {"status": "unready", "missing": dict(lacking)} if lacking else {"status": "ready"}
        return web.json_response(status, status=503 if lacking else 200)

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    application.router.add_get("/metrics", metrics)


@asynccontextmanager
async def serving(application: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serve an application while the block runs; yields the port in use (the one chosen, when ``port`` is 0).

    Raises OSError, naming address and port, when the address is taken.
    """
    runner = web.AppRunner(
        application,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=5.0,
        # A handler inflates what it expects, within its own limit; aiohttp would inflate first and count later.
        auto_decompress=False,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def run_until_stopped(main: Callable[[asyncio.Event], Awaitable[Any]]) -> None:
    """Run a service's main coroutine with an event that SIGTERM or SIGINT sets; its errors come through."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    await main(stop)
