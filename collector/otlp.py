"""OTLP requests as they come: text that is not UTF-8 costs itself, and not the batch it came in.

Protobuf refuses a whole message for one such text. The senders that write one (a path, a label cut off in the middle
of a character) do not look, nor do stock collectors that pass it on.
"""

from typing import Any, Final

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from fleetpulse.stream.errors import MalformedMetricsError


def _add(file: FileDescriptor, pool: DescriptorPool) -> None:
    """Add a file and those it needs, each text in them as bytes."""
    for needed in file.dependencies:
        _add(needed, pool)
    copy = FileDescriptorProto()
    file.CopyToProto(copy)
    for described in copy.message_type:
        _as_bytes(described)
    pool.Add(copy)


def _as_bytes(described: DescriptorProto) -> None:
    for each in described.field:
        if each.type == FieldDescriptorProto.TYPE_STRING:
            each.type = FieldDescriptorProto.TYPE_BYTES
    for nested in described.nested_type:
        _as_bytes(nested)


def _tolerant_class() -> Any:
    pool = DescriptorPool()
    _add(ExportMetricsServiceRequest.DESCRIPTOR.file, pool)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(ExportMetricsServiceRequest.DESCRIPTOR.full_name))


# The same messages on the wire. What is text in the one is bytes in the other, at which protobuf does not look.
_Tolerant: Final = _tolerant_class()


def parse_tolerantly(message: bytes) -> Any:
    """The request with its texts as bytes. Raises MalformedMetricsError for what is no request."""
    request = _Tolerant()
    try:
        request.ParseFromString(message)
    except DecodeError as error:
        raise MalformedMetricsError(f"not an OTLP metrics request: {error}") from error
    return request


def resources(message: bytes) -> list[bytes]:
    """A request for each resource, its texts as they came. Raises MalformedMetricsError for what is no request."""
    request = parse_tolerantly(message)
    return [_Tolerant(resource_metrics=[each]).SerializeToString() for each in request.resource_metrics]


def parse(message: bytes) -> tuple[ExportMetricsServiceRequest, bool]:
    """The request, and whether a text in it was not UTF-8: what is wrong in it becomes U+FFFD.

    Raises MalformedMetricsError for what is no request.
    """
    request = ExportMetricsServiceRequest()
    try:
        request.ParseFromString(message)
    except DecodeError:
        tolerant = parse_tolerantly(message)
        _mend(tolerant, ExportMetricsServiceRequest.DESCRIPTOR)
        request.ParseFromString(tolerant.SerializeToString())
        return request, True
    return request, False


def _mend(message: Message, meant: Descriptor) -> None:
    """Make UTF-8 of the texts of a message read tolerantly; ``meant`` says which fields are texts."""
    for field, value in message.ListFields():
        true_field = meant.fields_by_number[field.number]
        if true_field.message_type is not None:
            for each in (value,) if isinstance(value, Message) else value:
                _mend(each, true_field.message_type)
        elif true_field.type == FieldDescriptor.TYPE_STRING:
            if isinstance(value, bytes):
                setattr(message, field.name, _utf8(value))
            else:
                value[:] = [_utf8(each) for each in value]


def _utf8(text: bytes) -> bytes:
    return text.decode(errors="replace").encode()
