"""The usage record: one attempt of the proxy that reached an engine, whether or not an answer came of it."""

from typing import Annotated, Final, Literal

import msgspec

from fleetpulse.stream.errors import MalformedUsageError
from fleetpulse.stream.heartbeat import Count, Identity, Text
from fleetpulse.stream.json_message import JsonFormat

SCHEMA_VERSION: Final = 1

UsageOutcome = Literal["completed", "refused", "failed", "broken", "cancelled"]
"""completed: the client has the whole answer. refused: the engine refused the request (4xx). failed: no answer came, or
one that was not passed on; the client may have been served by another attempt. broken: the answer broke off on its way.
cancelled: the client left, or did not read."""
TokenSource = Literal["engine", "counted", "none"]
"""Where the numbers come from: the engine's own usage; events that went through, of which engines send one a token; or
nothing is known."""

Seconds = Annotated[float, msgspec.Meta(ge=0)]


class UsageRecord(msgspec.Struct, frozen=True):
    """One attempt. ``record_id`` is unique: a record that comes twice was sent twice.

    Token counts are None where they are not known, never 0 instead.
    """

    record_id: Identity
    request_id: Text
    """The correlation id, the same for all attempts of a request."""
    attempt: Annotated[int, msgspec.Meta(ge=1, le=1_000)]
    started_unix_nano: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    instance_id: Identity
    worker_id: Text
    organization_id: Text
    key_id: Text
    model_id: Text
    model: Text
    """The model's Hugging Face id."""
    path: Text
    is_stream: bool
    outcome: UsageOutcome
    status: Annotated[int, msgspec.Meta(ge=100, le=999)] | None
    """The engine's; None when it gave none."""
    duration_seconds: Seconds
    first_token_seconds: Seconds | None
    """Time to the first event of a stream."""
    prompt_tokens: Count | None
    completion_tokens: Count | None
    cached_tokens: Count | None
    token_source: TokenSource
    schema_version: int = SCHEMA_VERSION


_format = JsonFormat(UsageRecord, SCHEMA_VERSION, MalformedUsageError)
encode = _format.encode
decode = _format.decode
