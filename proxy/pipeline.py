"""A request's way: authenticate → resolve → select → relay → account."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

import msgspec
from aiohttp import web
from aiohttp.http import HttpVersion11
from aiohttp.web_protocol import RequestPayloadError

from fleetpulse.settings import ProxySettings
from proxy import body as bodies
from proxy.access import Key
from proxy.access_reader import Access
from proxy.account import outcome
from proxy.affinity import hash64
from proxy.authenticate import authenticate, digest_of
from proxy.body import COMPLETIONS, RESPONSES, Body
from proxy.call import Call, correlation_id, traceparent
from proxy.errors import ProxyError
from proxy.front import CLOSED, KEPT, ClientConnection, refusal
from proxy.limits import Limits
from proxy.metrics import NO_MODEL, ProxyMetrics
from proxy.relay.attempts import Attempt, Attempts
from proxy.relay.client import Client
from proxy.relay.outbox import Outbox
from proxy.request_log import RequestLog
from proxy.resolve import resolve, usable

MODELS: Final = "/v1/models"
ENGINE_PATHS: Final = COMPLETIONS | {"/v1/embeddings", RESPONSES}
# Part of the trace context that goes along as it is.
_TRACE_HEADERS: Final = ("tracestate", "baggage")
# Some clients offer HTTP/2 with each request, and are content with an answer in HTTP/1.1 (RFC 9110, section 7.8).
_OFFER: Final = "h2c"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
CLIENT_GONE: Final = 499
_encode: Final = msgspec.json.Encoder().encode


class Request(msgspec.Struct):
    """One request from its arrival to its line in the log."""

    client: Client
    path: str
    started_at: float
    call: Call | None = None
    attempt: Attempt | None = None
    status: int = CLIENT_GONE
    outcome: str = "cancelled"
    detail: str = ""


@dataclass(slots=True)
class Pipeline:
    """Handles requests; everything it needs is given to it."""

    settings: ProxySettings
    access: Access
    limits: Limits
    attempts: Attempts
    metrics: ProxyMetrics
    log: RequestLog
    other: Callable[[web.BaseRequest, str], web.StreamResponse | None]
    """Answers what is not OpenAI's API: health and metrics."""
    outbox: Outbox
    in_flight: int = 0
    paths: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.paths = ENGINE_PATHS | frozenset(self.settings.engine_paths)

    async def handle(self, http: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        path = http.raw_path.partition("?")[0]
        answer = self.other(http, path) if http.method == "GET" else None
        if answer is not None:
            return answer
        connection = http.protocol
        assert isinstance(connection, ClientConnection)
        if connection.transport is None:
            return CLOSED
        headers = http.headers
        correlation = correlation_id(headers.get("X-Correlation-Id"), headers.get("X-Request-Id"))
        client = Client(connection.transport, self.outbox, correlation, http.version >= HttpVersion11, http.keep_alive)
        connection.client = client
        request = Request(client, path, time.monotonic())
        self.in_flight += 1
        try:
            return await self._answer(http, request)
        except ProxyError as error:
            request.status, request.outcome, request.detail = error.status, _outcome_of(error), error.message
            return _refuse(http, error, correlation)
        finally:
            self.in_flight -= 1
            self._over(request)
            connection.client = None

    async def _answer(self, http: web.BaseRequest, request: Request) -> web.StreamResponse:
        path, method = request.path, http.method
        if http.headers.get("Upgrade", _OFFER).strip().lower() != _OFFER or method == "CONNECT":
            raise ProxyError(400, "upgrade_refused", "this server does not switch protocols")
        if path in self.paths:
            _allow(method, "POST")
            return await self._engine(http, request)
        if path == MODELS or path.startswith(f"{MODELS}/"):
            _allow(method, "GET")
            return await self._models(http, request)
        raise ProxyError(404, "unknown_url", "there is no such URL")

    async def _engine(self, http: web.BaseRequest, request: Request) -> web.StreamResponse:
        key = await self._key(http)
        self.limits.admit(key, request.started_at)
        if self.in_flight > self.settings.requests_in_flight:
            raise ProxyError(503, "overloaded", "the proxy has too many requests under way", retry_after_seconds=1)
        body = bodies.parse(await self._body(http), self.settings)
        model = resolve(body.model, key, self.access.snapshot)
        call = request.call = Call(
            client=request.client,
            path=request.path,
            key=key,
            model=model,
            body=body,
            session=self._session(http, key, body),
            trace_headers=_trace_headers(http),
            started_at=request.started_at,
        )
        attempt = request.attempt = await self.attempts.carry(call)
        request.status = attempt.status or CLIENT_GONE
        request.outcome, request.detail = outcome(attempt), attempt.ending.detail
        return KEPT if request.client.keeps_alive else CLOSED

    async def _key(self, http: web.BaseRequest) -> Key:
        if (lacking := self.access.lacking) is not None:
            raise ProxyError(503, "not_ready", f"keys and models are not known yet: {lacking}", retry_after_seconds=1)
        digest = digest_of(http.headers.get("Authorization"))
        if digest not in self.access.snapshot.keys:
            await self.access.look_for(digest)
        return authenticate(digest, self.access.snapshot)

    async def _models(self, http: web.BaseRequest, request: Request) -> web.StreamResponse:
        key = await self._key(http)
        wanted = unquote(request.path.removeprefix(MODELS).removeprefix("/"))
        snapshot = self.access.snapshot
        if wanted:
            model = resolve(wanted, key, snapshot)
            answer = _card(wanted, model.created_unix, model.hugging_face_id.partition("/")[0])
        else:
            answer = {"object": "list", "data": [_card(*one) for one in usable(key, snapshot)]}
        request.client.answer(200, b"application/json", _encode(answer))
        request.status, request.outcome = 200, "completed"
        return KEPT if request.client.keeps_alive else CLOSED

    async def _body(self, http: web.BaseRequest) -> bytes:
        """The whole body. Raises ProxyError: 400, 408, 413."""
        headers = http.headers
        most = self.settings.body_bytes
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
            async with asyncio.timeout(self.settings.body_timeout_seconds):
                return await http.read()
        except web.HTTPRequestEntityTooLarge:
            raise _too_large(most) from None
        except TimeoutError:
            raise ProxyError(408, "body_timeout", "the body did not come in time") from None
        except RequestPayloadError:
            raise ProxyError(400, "malformed_request", "the body is not framed as it should be") from None

    def _session(self, http: web.BaseRequest, key: Key, body: Body) -> int | None:
        """What is to stay on one worker; sessions of different organisations have nothing to do with each other."""
        named = http.headers.get(self.settings.session_header)
        most = self.settings.prefix_affinity_bytes
        beginning = named.encode("utf-8", "surrogateescape") if named else body.beginning(most) if most else None
        return hash64(key.organization_id.bytes + beginning) if beginning is not None else None

    def _over(self, request: Request) -> None:
        """Count and tell how it ended."""
        call, attempt = request.call, request.attempt
        seconds = time.monotonic() - request.started_at
        model = call.model.hugging_face_id if call is not None else NO_MODEL
        self.metrics.ended(model, request.outcome, request.status)
        if call is not None and attempt is not None:
            self.metrics.answered(call, attempt, seconds)
        client = request.client
        self.log.write(
            client.correlation_id,
            request.path if request.path in self.paths else "other",
            request.status,
            request.outcome,
            seconds,
            call,
            attempt,
            request.detail,
        )


def _card(name: str, created_unix: int, owner: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created_unix, "owned_by": owner}


def _outcome_of(error: ProxyError) -> str:
    if error.status == 429:
        return "limited"
    return "rejected" if error.status < 500 else "failed"


def _allow(method: str, only: str) -> None:
    if method != only:
        raise ProxyError(405, "method_not_allowed", f"only {only} is allowed here")


def _trace_headers(http: web.BaseRequest) -> str:
    """The trace context, as header lines."""
    headers = http.headers
    lines = f"traceparent: {traceparent(headers.get('traceparent'))}\r\n"
    for name in _TRACE_HEADERS:
        value = headers.get(name)
        if value is not None and value.isascii() and value.isprintable():
            lines += f"{name}: {value}\r\n"
    return lines


def _too_large(most: int) -> ProxyError:
    return ProxyError(413, "body_too_large", f"the body may have {most} bytes")


def _refuse(http: web.BaseRequest, error: ProxyError, correlation: str) -> web.Response:
    answer = refusal(error, correlation)
    if error.status in (400, 408, 413) and not http.content.is_eof():
        # Where the next request would begin is not known, or too far away.
        answer.force_close()
    return answer
