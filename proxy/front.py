"""What makes clients' connections, and ends them: plain ones of our own, with aiohttp's server behind them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from fleetpulse.settings import ProxySettings
from fleetpulse.telemetry import logger
from proxy.connection import PlainConnection
from proxy.pipeline import Pipeline
from proxy.plain import Plain, read_plain
from proxy.seldom import Seldom
from proxy.server import ClientConnection

# What is said by aiohttp, a client may be able to bring about again and again.
_log = logger(__name__)
_log.addFilter(Seldom())

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# What is left of a refused request's body is read for so long, that its client sees the answer.
LINGER_SECONDS: Final = 2.0


class Front(web.Server):
    """``handle`` answers what is not plain. ``malformed`` is called for what is not HTTP as it should be."""

    def __init__(
        self, handle: Handle, pipeline: Pipeline, settings: ProxySettings, malformed: Callable[[], None]
    ) -> None:
        super().__init__(handle, request_factory=self._request, handler_cancellation=True)
        self.pipeline = pipeline
        self.plain: set[PlainConnection] = set()
        self.is_stopping = False
        self._loop = asyncio.get_running_loop()
        self._malformed = malformed
        self._settings = settings
        self.body_bytes = settings.body_bytes
        self._options: dict[str, Any] = {
            "access_log": None,
            "logger": _log,
            "keepalive_timeout": settings.idle_timeout_seconds,
            "max_line_size": settings.header_bytes,
            "max_field_size": settings.header_bytes,
            "max_headers": settings.headers,
            "lingering_time": LINGER_SECONDS,
            # A compressed body is refused, never inflated.
            "auto_decompress": False,
        }

    def __call__(self) -> PlainConnection:  # type: ignore[override]
        """Called for each connection."""
        return PlainConnection(self)

    def successor(self) -> ClientConnection:
        """Who takes over a connection whose client sends something that is not plain."""
        return ClientConnection(self._malformed, self, loop=self._loop, **self._options)

    def read(self, data: bytes) -> Plain | None:
        """The plain request that the data begin with."""
        limits = self._settings
        return read_plain(data, self.pipeline.paths, limits.headers, limits.header_bytes, limits.body_bytes)

    def sweep(self, now: float) -> None:
        """Close connections whose clients have sent nothing for long."""
        for connection in tuple(self.plain):
            if connection.is_idle and now - connection.idle_since > self._settings.idle_timeout_seconds:
                connection.transport.close()

    def pre_shutdown(self) -> None:
        """Let each connection end after the request that it has, idle ones now."""
        self.is_stopping = True
        for connection in tuple(self.plain):
            connection.stop()
        super().pre_shutdown()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Close what is left."""
        for connection in tuple(self.plain):
            connection.transport.abort()
        await super().shutdown(timeout)

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(
            message, payload, protocol, writer, task, self._loop, client_max_size=self._settings.body_bytes
        )
