"""The HTTP door: heartbeats and OTLP/HTTP metrics of agents that cannot reach Kafka, forwarded into the stream.

Nothing is answered with success before the broker has the message.
"""

import asyncio
import hashlib
import hmac
import json
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from aiohttp import hdrs, web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from collector import otlp_json
from collector.metrics import CollectorMetrics
from collector.otlp import parse_tolerantly
from fleetpulse.stream import heartbeat as heartbeats
from fleetpulse.stream.errors import MalformedMetricsError, MessageError, NotDeliveredError
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import HEARTBEATS, METRICS
from fleetpulse.telemetry import logger

_log = logger(__name__)

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
RETRY_AFTER_SECONDS: Final = "5"

IDENTITY: Final = "identity"
# zlib's window bits say which wrapping is expected; HTTP's deflate is zlib's own.
COMPRESSIONS: Final = {"gzip": 31, "deflate": 15}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Door:
    """Routes of the door. ``digests`` are SHA-256 digests (hex) of the tokens that open it; with none it is shut."""

    def __init__(
        self, producer: StreamProducer, digests: Sequence[str], message_bytes: int, metrics: CollectorMetrics
    ) -> None:
        self._producer = producer
        self._digests = [digest.lower().encode() for digest in digests]
        self._message_bytes = message_bytes
        self._metrics = metrics

    def add_routes(self, application: web.Application) -> None:
        """Add the door's routes to an application."""
        for path, handler in (
            ("/internal/worker/heartbeat", self._heartbeat),
            ("/v1/metrics", self._otlp_metrics),
        ):
            application.router.add_post(path, self._counted(path, handler))

    def _counted(self, path: str, handler: Handler) -> Handler:
        async def answer(request: web.Request) -> web.StreamResponse:
            started = time.monotonic()
            try:
                self._authorise(request)
                response = await handler(request)
            except web.HTTPException as refusal:
                self._metrics.door_requests.labels(path, str(refusal.status)).inc()
                raise
            finally:
                self._metrics.door_seconds.labels(path).observe(time.monotonic() - started)
            self._metrics.door_requests.labels(path, str(response.status)).inc()
            return response

        return answer

    def _authorise(self, request: web.Request) -> None:
        """Compare digests in constant time, all of them, so that time tells nothing about any."""
        scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        digest = hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest().encode()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise _refusal(web.HTTPUnauthorized, "a worker token is required: Authorization: Bearer <token>")

    async def _body(self, request: web.Request) -> bytes:
        """The request's body, inflated if need be, never larger than a message may be."""
        encoding = request.headers.get(hdrs.CONTENT_ENCODING, IDENTITY).lower()
        if encoding != IDENTITY and encoding not in COMPRESSIONS:
            raise _refusal(web.HTTPUnsupportedMediaType, f"Content-Encoding {encoding}: use gzip, deflate or none")
        received = bytearray()
        async for chunk in request.content.iter_any():
            received += chunk
            if len(received) > self._message_bytes:
                raise self._too_large()
        return bytes(received) if encoding == IDENTITY else self._inflated(bytes(received), encoding)

    def _inflated(self, received: bytes, encoding: str) -> bytes:
        """All parts of a compressed body: gzip streams may follow one another (RFC 1952)."""
        body = b""
        while received:
            inflater = zlib.decompressobj(COMPRESSIONS[encoding])
            try:
                body += inflater.decompress(received, self._message_bytes + 1 - len(body))
            except zlib.error as error:
                raise _refusal(web.HTTPBadRequest, f"not {encoding}: {error}") from error
            if len(body) > self._message_bytes:
                raise self._too_large()
            if not inflater.eof:
                raise _refusal(web.HTTPBadRequest, f"the {encoding} stream is cut off")
            received = inflater.unused_data
        return body

    def _too_large(self) -> web.HTTPException:
        text = f"larger than {self._message_bytes} bytes"
        return web.HTTPRequestEntityTooLarge(
            max_size=self._message_bytes, actual_size=self._message_bytes + 1, text=_error(text), content_type=JSON
        )

    async def _heartbeat(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        try:
            heartbeat = heartbeats.decode(body)
        except MessageError as error:
            raise _refusal(web.HTTPBadRequest, f"{error.reason}: {error}") from error
        await self._forward(HEARTBEATS.name, body, heartbeat.instance_id.encode())
        return web.json_response({"status": "accepted"}, status=202)

    async def _otlp_metrics(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        if request.content_type == JSON:
            export = await self._parsed_json(body)
            body = export.SerializeToString()
        elif request.content_type == PROTOBUF:
            try:
                export = parse_tolerantly(body)
            except MalformedMetricsError as error:
                raise _refusal(web.HTTPBadRequest, str(error)) from error
        else:
            raise _refusal(web.HTTPUnsupportedMediaType, f"Content-Type: use {PROTOBUF} or {JSON}")
        if export.resource_metrics:
            await self._forward(METRICS.name, body, _sender_key(export))
        if request.content_type == JSON:
            return web.json_response({})
        return web.Response(body=ExportMetricsServiceResponse().SerializeToString(), content_type=PROTOBUF)

    async def _parsed_json(self, body: bytes) -> ExportMetricsServiceRequest:
        """On a thread of its own: what protobuf takes a moment for, JSON takes a second for at the largest."""
        try:
            return await asyncio.to_thread(otlp_json.parse, body)
        except MalformedMetricsError as error:
            raise _refusal(web.HTTPBadRequest, str(error)) from error

    async def _forward(self, topic: str, value: bytes, key: bytes) -> None:
        try:
            await self._producer.send(topic, value, key)
        except NotDeliveredError as error:
            _log.warning("door could not forward", extra={"topic": topic, "error": str(error)})
            raise _refusal(
                web.HTTPServiceUnavailable, "the stream is away, send again", {hdrs.RETRY_AFTER: RETRY_AFTER_SECONDS}
            ) from error


def _sender_key(export: Any) -> bytes:
    """One partition for one sender, so that its messages stay in order."""
    return hashlib.blake2b(export.resource_metrics[0].resource.SerializeToString(), digest_size=16).hexdigest().encode()


def _error(text: str) -> str:
    return json.dumps({"error": text[:400]})


def _refusal(kind: type[web.HTTPException], text: str, headers: dict[str, str] | None = None) -> web.HTTPException:
    return kind(text=_error(text), content_type=JSON, headers=headers)
