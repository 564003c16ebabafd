"""Messages of the metrics topic to columns."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics

from collector.template import Decoded, Plan, Template, decoded, make_template
from collector.walk import walk
from fleetpulse.stream.errors import MalformedMetricsError

# A sender's shapes: its regular message, the first of a boot, one with an optional part.
TEMPLATES_PER_SENDER: Final = 4
# A sender whose messages never repeat a shape is walked without further attempts.
FRUITLESS_ATTEMPTS: Final = 8

_RESOURCE_METRICS_TAG: Final = 0x0A  # field 1, length-delimited, in the request and again inside for the resource


@dataclass(slots=True)
class _Sender:
    """Templates of messages with the same resource bytes and length."""

    templates: list[Template] = field(default_factory=list)
    attempts: int = 0


@dataclass(slots=True)
class MessageContent:
    """What one message held: its usable resources, and how many points or resources were refused, by reason."""

    resources: list[Decoded]
    refused: dict[str, int]


class Decoder:
    """Decodes OTLP messages; remembers the shapes of at most ``most_senders`` senders, least recently used first out.

    A sender's memory is roughly twice the size of its message.
    """

    def __init__(self, most_senders: int = 20_000) -> None:
        self._most_senders = most_senders
        self._senders: OrderedDict[tuple[int, bytes], _Sender] = OrderedDict()
        self.recognised = 0
        self.walked = 0

    def decode(self, message: bytes) -> MessageContent:
        """Decode one message. Raises MalformedMetricsError when it is not an OTLP metrics request."""
        content = MessageContent([], {})
        for chunk in _resource_chunks(message):
            self._decode_resource(chunk, content)
        return content

    def _decode_resource(self, chunk: bytes, content: MessageContent) -> None:
        key = (len(chunk), _resource_bytes(chunk))
        sender = self._senders.get(key)
        if sender is not None:
            self._senders.move_to_end(key)
            for template in sender.templates:
                found = template.read(chunk)
                if found is not None:
                    self.recognised += 1
                    if found.plan.refused:
                        _add(content.refused, found.plan.refused)
                    content.resources.append(found)
                    return
        self._walk(chunk, key, sender, content)

    def _walk(self, chunk: bytes, key: tuple[int, bytes], sender: _Sender | None, content: MessageContent) -> None:
        self.walked += 1
        parsed = _parse(chunk)
        try:
            sketch = walk(parsed)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # No message of a stranger may stop the pipeline, not even one that we failed to imagine.
            raise MalformedMetricsError(f"cannot be read: {error!r}") from error
        _add(content.refused, sketch.refused)
        if sketch.worker is None:
            _add(content.refused, {"missing_identity": 1})
            return
        plan = Plan.of(sketch)
        content.resources.append(decoded(sketch, plan))
        if sender is None:
            # Only a sender that comes again is worth a template.
            self._senders[key] = _Sender()
            if len(self._senders) > self._most_senders:
                self._senders.popitem(last=False)
        elif sender.attempts < FRUITLESS_ATTEMPTS:
            sender.attempts += 1
            template = make_template(chunk, parsed, sketch, plan)
            if template is not None:
                sender.templates = [template, *sender.templates][:TEMPLATES_PER_SENDER]


def _add(total: dict[str, int], more: dict[str, int]) -> None:
    for reason, count in more.items():
        total[reason] = total.get(reason, 0) + count


def _parse(chunk: bytes) -> ResourceMetrics:
    parsed = ResourceMetrics()
    try:
        parsed.ParseFromString(chunk)
    except DecodeError as error:
        raise MalformedMetricsError(f"resource metrics: {error}") from error
    return parsed


def _resource_chunks(message: bytes) -> list[bytes]:
    """The bytes of each ResourceMetrics. The common case, one resource and nothing else, is cut by hand."""
    if message and message[0] == _RESOURCE_METRICS_TAG:
        length, start = _varint(message, 1)
        if start and start + length == len(message):
            return [message[start:]]
    request = ExportMetricsServiceRequest()
    try:
        request.ParseFromString(message)
    except DecodeError as error:
        raise MalformedMetricsError(f"not an OTLP metrics request: {error}") from error
    if not request.resource_metrics:
        raise MalformedMetricsError("no resource metrics in the message")
    return [resource.SerializeToString() for resource in request.resource_metrics]


def _resource_bytes(chunk: bytes) -> bytes:
    """The encoded resource at the start of a ResourceMetrics; empty when something else comes first."""
    if chunk and chunk[0] == _RESOURCE_METRICS_TAG:
        length, start = _varint(chunk, 1)
        if start and start + length <= len(chunk):
            return chunk[start : start + length]
    return b""


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A varint and the position after it; position 0 when it is cut off or too long."""
    value = shift = 0
    while position < len(data) and shift < 35:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    return 0, 0
