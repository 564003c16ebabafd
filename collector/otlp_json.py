"""OTLP's JSON encoding to the request that the protobuf encoding would give."""

import base64
import binascii
from collections.abc import Iterator
from typing import Final

from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Exemplar

from fleetpulse.stream.errors import MalformedMetricsError

# What an identifier's hex digits become where they are taken for base64: 3 bytes for 4 digits.
_MISREAD_BYTES: Final = {24: 16, 12: 8}


def parse(body: bytes) -> ExportMetricsServiceRequest:
    """Read a request; unknown fields are ignored, as OTLP says they are to be, and what is not UTF-8 becomes U+FFFD.

    Raises MalformedMetricsError for what is no such request.
    """
    request = ExportMetricsServiceRequest()
    try:
        json_format.Parse(body.decode(errors="replace"), request, ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, TypeError, RecursionError) as error:
        raise MalformedMetricsError(f"not an OTLP metrics request in JSON: {error}") from error
    for exemplar in _exemplars(request):
        exemplar.trace_id = _identifier(exemplar.trace_id)
        exemplar.span_id = _identifier(exemplar.span_id)
    return request


def _identifier(read: bytes) -> bytes:
    """OTLP writes identifiers in hex, protobuf's own JSON in base64, which is what was read here."""
    length = _MISREAD_BYTES.get(len(read))
    if length is None:
        return read
    try:
        return binascii.unhexlify(base64.b64encode(read))
    except binascii.Error:
        return read


def _exemplars(request: ExportMetricsServiceRequest) -> Iterator[Exemplar]:
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                for point in getattr(metric, kind).data_points if kind not in {None, "summary"} else ():
                    yield from point.exemplars
