"""A request's way: authenticate → resolve → select → relay → account.

Nothing here waits: who has read the request calls one stage after the other, and hears from the relay when it is over.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from fleetpulse.settings import ProxySettings
from proxy import body as bodies
from proxy.access import Key
from proxy.access_reader import Access
from proxy.account import outcome
from proxy.affinity import hash64
from proxy.authenticate import authenticate, digest_of
from proxy.body import COMPLETIONS, RESPONSES, Body, BodyLimits
from proxy.call import Call, traceparent
from proxy.errors import ProxyError
from proxy.limits import Limits
from proxy.metrics import NO_MODEL, ProxyMetrics
from proxy.plain import Head
from proxy.relay.attempts import Attempt, Attempts
from proxy.relay.carriage import Carriage, Result
from proxy.relay.client import Client
from proxy.relay.outbox import Outbox
from proxy.request_log import RequestLog
from proxy.resolve import resolve

ENGINE_PATHS: Final = COMPLETIONS | {"/v1/embeddings", RESPONSES}
# Part of the trace context that goes along as it is.
_TRACE_HEADERS: Final = ("tracestate", "baggage")
CLIENT_GONE: Final = 499


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

    def answered(self, attempt: Attempt) -> None:
        """An engine's answer went to the client, or as much of it as there was."""
        self.attempt, self.status = attempt, attempt.status or CLIENT_GONE
        self.outcome, self.detail = outcome(attempt), attempt.ending.detail

    def refused(self, error: ProxyError) -> None:
        """The client is told why not."""
        self.status, self.detail = error.status, error.message
        self.outcome = "limited" if error.status == 429 else "rejected" if error.status < 500 else "failed"


@dataclass(slots=True)
class Pipeline:
    """The stages, and what they need."""

    settings: ProxySettings
    access: Access
    limits: Limits
    attempts: Attempts
    metrics: ProxyMetrics
    log: RequestLog
    outbox: Outbox
    in_flight: int = 0
    paths: frozenset[str] = field(init=False)
    _session_header: str = field(init=False)
    _body_limits: BodyLimits = field(init=False)
    _in_flight_most: int = field(init=False)
    _affinity_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.paths = ENGINE_PATHS | frozenset(self.settings.engine_paths)
        settings = self.settings
        # What every request needs: reading it from the settings takes ten times as long.
        self._session_header = settings.session_header.lower()
        self._body_limits = BodyLimits(settings.choices, settings.output_tokens, settings.messages)
        self._in_flight_most, self._affinity_bytes = settings.requests_in_flight, settings.prefix_affinity_bytes

    def begin(self, client: Client, path: str) -> Request:
        """A request is here; each that has begun must be over() one day."""
        self.in_flight += 1
        return Request(client, path, time.monotonic())

    def known_key(self, head: Head) -> Key | None:
        """The key of a plain request if it is known here and good; None is no refusal yet."""
        if self.access.lacking is not None:
            return None
        try:
            if head.key_digest is None:
                head.key_digest = digest_of(head.headers.get("authorization"))
            return authenticate(head.key_digest, self.access.snapshot)
        except ProxyError:
            return None

    async def key(self, authorization: str | None) -> Key:
        """The key of a request, which may be newer than what is known here. Raises ProxyError: 401, 403, 503."""
        if (lacking := self.access.lacking) is not None:
            raise ProxyError(503, "not_ready", f"keys and models are not known yet: {lacking}", retry_after_seconds=1)
        digest = digest_of(authorization)
        if digest not in self.access.snapshot.keys:
            await self.access.look_for(digest)
        return authenticate(digest, self.access.snapshot)

    def admit(self, request: Request, key: Key) -> None:
        """Raises ProxyError: 429 for a key that made enough of them, 503 while there are too many."""
        self.limits.admit(key, request.started_at)
        if self.in_flight > self._in_flight_most:
            raise ProxyError(503, "overloaded", "the proxy has too many requests under way", retry_after_seconds=1)

    def carry(
        self, request: Request, key: Key, headers: Mapping[str, str], data: bytes, over: Callable[[Result], None]
    ) -> Carriage:
        """Send a request with this body on its way; ``headers`` are found by names in lower case.

        ``over`` hears once how it ended. Raises ProxyError: 400, 403, 404.
        """
        body = bodies.parse(data, self._body_limits)
        named = headers.get(self._session_header)
        request.call = Call(
            client=request.client,
            path=request.path,
            key=key,
            model=resolve(body.model, key, self.access.snapshot),
            body=body,
            session=self._session(named, key, body) if named or self._affinity_bytes else None,
            trace_headers=_trace_headers(headers),
            started_at=request.started_at,
        )
        carriage = Carriage(self.attempts, request.call, over)
        carriage.go()
        return carriage

    def over(self, request: Request) -> None:
        """Count and tell how a request ended."""
        self.in_flight -= 1
        call, attempt = request.call, request.attempt
        seconds = time.monotonic() - request.started_at
        model = call.model.hugging_face_id if call is not None else NO_MODEL
        self.metrics.ended(model, request.outcome, request.status)
        if call is not None and attempt is not None:
            self.metrics.answered(call.path, model, attempt, seconds)
        self.log.write(
            request.client.correlation_id,
            request.path if request.path in self.paths else "other",
            request.status,
            request.outcome,
            seconds,
            call,
            attempt,
            request.detail,
        )

    def _session(self, named: str | None, key: Key, body: Body) -> int | None:
        """What is to stay on one worker; sessions of different organisations have nothing to do with each other."""
        beginning = named.encode("utf-8", "surrogateescape") if named else body.beginning(self._affinity_bytes)
        return hash64(key.organization_id.bytes + beginning) if beginning is not None else None


def _trace_headers(headers: Mapping[str, str]) -> str:
    """The trace context, as header lines."""
    lines = f"traceparent: {traceparent(headers.get('traceparent'))}\r\n"
    for name in _TRACE_HEADERS:
        value = headers.get(name)
        if value is not None and value.isascii() and value.isprintable():
            lines += f"{name}: {value}\r\n"
    return lines
