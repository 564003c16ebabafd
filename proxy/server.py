"""A client's connection at aiohttp's server: with our errors, and a way past it for answers' bodies."""

from collections.abc import Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from fleetpulse.telemetry import logger
from proxy import errors
from proxy.call import correlation_id
from proxy.errors import ProxyError
from proxy.relay.client import Client
from proxy.seldom import Seldom

# What is said here, by aiohttp too, a client may be able to bring about again and again.
_log = logger(__name__)
_log.addFilter(Seldom())


class Sent(web.StreamResponse):
    """An answer that is with the client already."""

    def __init__(self, keeps_alive: bool) -> None:
        super().__init__()
        self._keep_alive = keeps_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing is left to do."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


KEPT: Final = Sent(keeps_alive=True)
CLOSED: Final = Sent(keeps_alive=False)


class ClientConnection(RequestHandler):
    """A client's connection. Who relays to it is told how it takes what is written."""

    __slots__ = ("_malformed", "client")

    def __init__(self, malformed: Callable[[], None], *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.client: Client | None = None
        self._malformed = malformed

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        super().pause_writing()
        if self.client is not None and self.client.listener is not None:
            self.client.listener.client_slow()

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        if self.client is not None and self.client.listener is not None:
            self.client.listener.client_ready()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The engine is told before anything else happens; then aiohttp cancels the handler."""
        client, self.client = self.client, None
        if client is not None and client.listener is not None:
            client.listener.client_gone()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        """What is not HTTP as it should be, or what we did wrong, in OpenAI's shape; the connection ends with it."""
        client = self.client
        if client is not None and client.head_sent:
            client.abort()
            return CLOSED
        if status >= 500:
            error = fault(exc)
        else:
            self._malformed()
            error = ProxyError(status, "malformed_request", "this is not an HTTP request as it should be")
        answer = refusal(error, client.correlation_id if client is not None else correlation_id())
        answer.force_close()
        return answer


def fault(exc: BaseException | None) -> ProxyError:
    """What we did wrong, told in the log; and what the client hears of it."""
    _log.error("request failed", extra={"error": repr(exc)}, exc_info=exc)
    return ProxyError(500, "internal_error", "the proxy failed on this request")


def refusal(error: ProxyError, correlation: str) -> web.Response:
    """An error as an answer."""
    headers = {"X-Request-Id": correlation, "X-Correlation-Id": correlation, **error.headers}
    return web.Response(
        status=error.status, body=errors.body(error, correlation), content_type="application/json", headers=headers
    )
