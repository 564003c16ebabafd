"""What can be wrong with a message. Each class is one reason, as it appears in dead letters and counters."""

from typing import ClassVar


class MessageError(ValueError):
    """A message that cannot be used; resending it will not help."""

    reason: ClassVar[str] = "malformed"


class MalformedHeartbeatError(MessageError):
    """Not a heartbeat: not JSON, a field missing, or a field of the wrong type or size."""

    reason = "malformed_heartbeat"


class MalformedLifecycleError(MessageError):
    """Not a lifecycle message: not JSON, a field missing, or a field of the wrong type or size."""

    reason = "malformed_lifecycle"


class MalformedUsageError(MessageError):
    """Not a usage record: not JSON, a field missing, or a field of the wrong type or size."""

    reason = "malformed_usage"


class UsageTimeError(MessageError):
    """A usage record of a time that cannot be, or of which no records are kept any more."""

    reason = "usage_time"


class UnknownSchemaVersionError(MessageError):
    """A message of a schema version this reader does not know."""

    reason = "unknown_schema_version"


class MalformedMetricsError(MessageError):
    """Not an OTLP metrics message."""

    reason = "malformed_otlp"


class OversizeMessageError(MessageError):
    """Larger than any agent or collector may send."""

    reason = "oversize"


class UnwritableMessageError(MessageError):
    """Well-formed, and yet the database takes exception to a value of it."""

    reason = "unwritable"


class NotDeliveredError(Exception):
    """The broker did not acknowledge a message in time. It may still have it: resending needs a reader that knows
    the message's sequence number."""
