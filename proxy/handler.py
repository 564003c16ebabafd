"""Requests that aiohttp has read: whatever is not plain, and what is not an engine's to answer."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

import msgspec
from aiohttp import web
from aiohttp.http import HttpVersion11
from aiohttp.web_protocol import RequestPayloadError

from proxy.call import correlation_id
from proxy.errors import ProxyError
from proxy.pipeline import Pipeline, Request
from proxy.relay.attempts import Attempt
from proxy.relay.carriage import Result
from proxy.relay.client import Client
from proxy.resolve import resolve, usable
from proxy.server import CLOSED, KEPT, ClientConnection, refusal

MODELS: Final = "/v1/models"
# Load balancers look with HEAD.
READING: Final = ("GET", "HEAD")
# Some clients offer HTTP/2 with each request, and are content with an answer in HTTP/1.1 (RFC 9110, section 7.8).
_OFFER: Final = "h2c"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_encode: Final = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Handler:
    """Answers requests. ``other`` answers what is not OpenAI's API: health and metrics."""

    pipeline: Pipeline
    other: Callable[[web.BaseRequest, str], web.StreamResponse | None]

    async def handle(self, http: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        path = http.raw_path.partition("?")[0]
        answer = self.other(http, path) if http.method in READING else None
        if answer is not None:
            return answer
        connection = http.protocol
        assert isinstance(connection, ClientConnection)
        if connection.transport is None:
            return CLOSED
        headers, pipeline = http.headers, self.pipeline
        client = Client(
            connection.transport,
            pipeline.outbox,
            correlation_id(headers.get("X-Correlation-Id"), headers.get("X-Request-Id")),
            http.version >= HttpVersion11,
            http.keep_alive,
        )
        connection.client = client
        request = pipeline.begin(client, path)
        try:
            return await self._answer(http, request)
        except ProxyError as error:
            request.refused(error)
            return _refuse(http, error, client.correlation_id)
        finally:
            pipeline.over(request)
            connection.client = None

    async def _answer(self, http: web.BaseRequest, request: Request) -> web.StreamResponse:
        path, method = request.path, http.method
        if http.headers.get("Upgrade", _OFFER).strip().lower() != _OFFER or method == "CONNECT":
            raise ProxyError(400, "upgrade_refused", "this server does not switch protocols")
        if path in self.pipeline.paths:
            _allow(method, ("POST",))
            return await self._engine(http, request)
        if path == MODELS or path.startswith(f"{MODELS}/"):
            _allow(method, READING)
            return await self._models(http, request)
        raise ProxyError(404, "unknown_url", "there is no such URL")

    async def _engine(self, http: web.BaseRequest, request: Request) -> web.StreamResponse:
        key = await self.pipeline.key(http.headers.get("Authorization"))
        self.pipeline.admit(request, key)
        data = await self._body(http)
        over: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def tell(result: Result) -> None:
            if not over.done():
                over.set_result(result)

        carriage = self.pipeline.carry(request, key, http.headers, data, tell)
        try:
            result = await over
        except asyncio.CancelledError:
            carriage.cancel()
            raise
        if not isinstance(result, Attempt):
            raise result
        request.answered(result)
        return KEPT if request.client.keeps_alive else CLOSED

    async def _models(self, http: web.BaseRequest, request: Request) -> web.StreamResponse:
        key = await self.pipeline.key(http.headers.get("Authorization"))
        wanted = unquote(request.path.removeprefix(MODELS).removeprefix("/"))
        snapshot = self.pipeline.access.snapshot
        if wanted:
            model = resolve(wanted, key, snapshot)
            answer = _card(wanted, model.created_unix, model.hugging_face_id.partition("/")[0])
        else:
            answer = {"object": "list", "data": [_card(*one) for one in usable(key, snapshot)]}
        request.client.answer(200, b"application/json", _encode(answer), has_body=http.method != "HEAD")
        request.status, request.outcome = 200, "completed"
        return KEPT if request.client.keeps_alive else CLOSED

    async def _body(self, http: web.BaseRequest) -> bytes:
        """The whole body. Raises ProxyError: 400, 408, 413."""
        headers = http.headers
        most = self.pipeline.settings.body_bytes
        if (http.content_length or 0) > most:
            raise _too_large(most)
        coding = headers.get("Transfer-Encoding")
        if coding is not None and (coding.lower() != "chunked" or http.version < HttpVersion11):
            raise ProxyError(400, "unsupported_encoding", "Transfer-Encoding may only be chunked, in HTTP/1.1")
        if headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
            raise ProxyError(400, "unsupported_encoding", "bodies must not be compressed")
        if (expected := headers.get("Expect")) is not None:
            if expected.lower() != "100-continue":
                raise ProxyError(400, "unsupported_expectation", "Expect may only be 100-continue")
            if http.transport is not None:
                http.transport.write(_CONTINUE)
        content = http.content
        try:
            if content.is_eof():
                data = content.read_nowait(-1)
                if len(data) > most:
                    raise _too_large(most)
                return data
            async with asyncio.timeout(self.pipeline.settings.body_timeout_seconds):
                return await http.read()
        except web.HTTPRequestEntityTooLarge:
            raise _too_large(most) from None
        except TimeoutError:
            raise ProxyError(408, "body_timeout", "the body did not come in time") from None
        except RequestPayloadError:
            raise ProxyError(400, "malformed_request", "the body is not framed as it should be") from None


def _card(name: str, created_unix: int, owner: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created_unix, "owned_by": owner}


def _allow(method: str, allowed: tuple[str, ...]) -> None:
    if method not in allowed:
        raise ProxyError(405, "method_not_allowed", f"only {allowed[0]} is allowed here", allow=", ".join(allowed))


def _too_large(most: int) -> ProxyError:
    return ProxyError(413, "body_too_large", f"the body may have {most} bytes")


def _refuse(http: web.BaseRequest, error: ProxyError, correlation: str) -> web.Response:
    answer = refusal(error, correlation)
    if error.status in (400, 408, 413) and not http.content.is_eof():
        # Where the next request would begin is not known, or too far away.
        answer.force_close()
    return answer
