"""One request on its way through the proxy."""

import random
import re
from typing import Final

import msgspec

from proxy.access import Key, Model
from proxy.body import Body
from proxy.relay.client import Client

# version-trace id-parent id-flags (W3C trace context, level 1); ids of zeros only are none.
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# Ids go into logs and headers as they are: no spaces, quotes or control characters, and short.
_CORRELATION_ID: Final = re.compile(r"[A-Za-z0-9._:~-]{1,128}")


class Call(msgspec.Struct):
    """What is known of a request once it was let in. Times are monotonic seconds."""

    client: Client
    path: str
    key: Key
    model: Model
    body: Body
    session: int | None
    trace_headers: str
    started_at: float

    @property
    def correlation_id(self) -> str:
        """Names the request in logs, errors and at the engine."""
        return self.client.correlation_id


def correlation_id(*given: str | None) -> str:
    """The first id a client gave that is fit to be used, or a new one; it names things and protects nothing."""
    for text in given:
        if text is not None and _CORRELATION_ID.fullmatch(text):
            return text
    return random.getrandbits(128).to_bytes(16, "big").hex()


def traceparent(given: str | None) -> str:
    """The client's trace context, or the start of a new trace."""
    if given is not None and _TRACEPARENT.fullmatch(given):
        return given
    made = random.getrandbits(192).to_bytes(24, "big").hex()
    return f"00-{made[:32]}-{made[32:]}-00"
