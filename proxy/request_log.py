"""One line for each request, without its content."""

import asyncio
import logging
import time
from typing import Final, Literal, TextIO

import msgspec

from fleetpulse.telemetry import JsonFormatter, logger
from proxy.call import Call
from proxy.relay.attempts import Attempt

_log = logger(__name__)

Which = Literal["all", "failures", "none"]
_WELL: Final = frozenset({"completed", "refused", "cancelled"})
# Lines wait this long for others: a write to a pipe costs as much as ten of them.
FLUSH_SECONDS: Final = 0.1


class _Line(msgspec.Struct, omit_defaults=True):
    """A line's fields, those of every line of ours first."""

    time: str
    level: str
    logger: str
    message: str
    correlation_id: str
    path: str
    status: int
    outcome: str
    duration_seconds: float
    key: str | None = None
    model: str | None = None
    is_stream: bool | None = None
    instance_id: str | None = None
    attempt: int | None = None
    first_token_seconds: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    detail: str | None = None


_encode: Final = msgspec.json.Encoder().encode


class RequestLog:
    """Writes the lines that were asked for, to where the log goes.

    In JSON past the logging module, which would cost more than the rest of a request's accounting.
    """

    def __init__(self, which: Which) -> None:
        self._which = which if _log.isEnabledFor(logging.INFO) else "none"
        self._handler = _json_handler()
        self._lines: list[bytes] = []
        self._second = 0
        self._time = ""

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
        line = _Line(
            self._now(),
            *("info", _log.name, "request"),
            correlation_id,
            path,
            status,
            outcome,
            round(seconds, 6),
            detail=detail or None,
        )
        if call is not None:
            line.key, line.model, line.is_stream = call.key.prefix, call.model.hugging_face_id, call.body.is_stream
        if attempt is not None:
            line.instance_id, line.attempt = attempt.worker.instance_id, attempt.number
            if attempt.first_seconds is not None:
                line.first_token_seconds = round(attempt.first_seconds, 6)
            if attempt.usage is not None and attempt.usage.is_told:
                line.prompt_tokens, line.completion_tokens = attempt.usage.read, attempt.usage.made
        if self._handler is not None:
            if not self._lines:
                asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
            self._lines.append(_encode(line))
        else:
            told = msgspec.to_builtins(line)
            _log.info("request", extra={name: told[name] for name in told.keys() - {*_OF_EVERY_LINE}})

    def flush(self) -> None:
        """Write the lines that wait."""
        if self._lines and self._handler is not None:
            self._handler.stream.write(b"\n".join(self._lines).decode() + "\n")
            self._handler.flush()
            self._lines.clear()

    def _now(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._time = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._time}.{int((now - second) * 1000):03d}Z"


_OF_EVERY_LINE: Final = ("time", "level", "logger", "message")


def _json_handler() -> "logging.StreamHandler[TextIO] | None":
    """The handler that the log goes through, when it is the only one and writes JSON."""
    handlers = logging.getLogger().handlers
    if len(handlers) == 1 and isinstance(handlers[0], logging.StreamHandler):
        handler = handlers[0]
        return handler if isinstance(handler.formatter, JsonFormatter) else None
    return None
