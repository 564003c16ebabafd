"""One line for each request, without its content."""

from typing import Final, Literal

from fleetpulse.telemetry import logger
from proxy.call import Call
from proxy.relay.attempts import Attempt

_log = logger(__name__)

Which = Literal["all", "failures", "none"]
_WELL: Final = frozenset({"completed", "refused", "cancelled"})


class RequestLog:
    """Writes the lines that were asked for."""

    def __init__(self, which: Which) -> None:
        self._which = which

    def write(
        self,
        correlation_id: str,
        path: str,
        status: int,
        outcome: str,
        seconds: float,
        call: Call | None,
        attempt: Attempt | None,
        detail: str,
    ) -> None:
        """Tell of a request that is over."""
        if self._which == "none" or (self._which == "failures" and outcome in _WELL and status < 500):
            return
        told: dict[str, object] = {
            "correlation_id": correlation_id,
            "path": path,
            "status": status,
            "outcome": outcome,
            "duration_seconds": round(seconds, 6),
        }
        if call is not None:
            told |= {"key": call.key.prefix, "model": call.model.hugging_face_id, "is_stream": call.body.is_stream}
        if attempt is not None:
            told |= {"instance_id": attempt.worker.instance_id, "attempt": attempt.number}
            if attempt.first_seconds is not None:
                told["first_token_seconds"] = round(attempt.first_seconds, 6)
            if attempt.usage is not None:
                told |= {"prompt_tokens": attempt.usage.read, "completion_tokens": attempt.usage.made}
        if detail:
            told["detail"] = detail
        _log.info("request", extra=told)
