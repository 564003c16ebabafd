"""``/healthz``, ``/readyz`` and ``/metrics``, which every service has; open, for they name nobody."""

from collections.abc import Mapping
from typing import Final

import msgspec

from control.api.endpoint import Endpoint

TAG: Final = "Health"


class Health(msgspec.Struct, frozen=True):
    """The process answers."""

    status: str


class Ready(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether it can do its work; ``missing`` says what lacks and why."""

    status: str
    missing: Mapping[str, str] = {}


ENDPOINTS: Final = (
    Endpoint("GET", "/healthz", "Whether the process answers", TAG, None, scope=None, answer=Health),
    Endpoint(
        "GET",
        "/readyz",
        "Whether it can do its work",
        TAG,
        None,
        scope=None,
        answer=Ready,
        other_answers={503: Ready},
    ),
    Endpoint(
        "GET",
        "/metrics",
        "Prometheus metrics",
        TAG,
        None,
        scope=None,
        answer=str,
        contents=("text/plain", "application/openmetrics-text"),
    ),
)
