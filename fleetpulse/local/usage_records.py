"""Usage records as a proxy would write them."""

from typing import Any, Final

import msgspec

from fleetpulse.stream.usage import UsageRecord

_USUAL: Final = UsageRecord(
    record_id="boot-1",
    request_id="request-1",
    attempt=1,
    started_unix_nano=0,
    instance_id="i-1",
    worker_id="w-1",
    organization_id="org",
    key_id="key",
    model_id="model",
    model="acme/model",
    path="/v1/chat/completions",
    is_stream=True,
    outcome="completed",
    status=200,
    duration_seconds=2.0,
    first_token_seconds=0.25,
    prompt_tokens=10,
    completion_tokens=20,
    cached_tokens=None,
    token_source="engine",  # noqa: S106 - the tokens are counted ones
)


def usage_record(record_id: str, started_unix_nano: int, **changes: Any) -> UsageRecord:
    """A stream of two seconds that was answered whole: 10 tokens in, 20 out."""
    return msgspec.structs.replace(_USUAL, record_id=record_id, started_unix_nano=started_unix_nano, **changes)
