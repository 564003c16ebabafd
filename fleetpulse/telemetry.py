"""Logs and metrics, handed out with our own prefix because the services' package names are common words."""

import contextvars
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from fleetpulse.settings import ServiceSettings

correlation_id: Final[contextvars.ContextVar[str | None]] = contextvars.ContextVar("correlation_id", default=None)

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def logger(module: str) -> logging.Logger:
    """The logger of a module: ``fleetpulse.`` and the module's name."""
    return logging.getLogger(module if module.startswith("fleetpulse") else f"fleetpulse.{module}")


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller passed as ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def event(record: logging.LogRecord) -> dict[str, Any]:
    """A log record as one flat JSON-ready object."""
    told: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    correlation = correlation_id.get()
    if correlation is not None:
        told["correlation_id"] = correlation
    told |= fields(record)
    if record.exc_info and record.exc_info[1] is not None:
        told["error"] = repr(record.exc_info[1])
    return told


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        told = event(record)
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


class TextFormatter(logging.Formatter):
    """For people: time, level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        extra = " ".join(f"{name}={value}" for name, value in fields(record).items())
        line = f"{time.strftime('%H:%M:%S')} {record.levelname.lower():7} {record.name} {record.getMessage()}"
        line = f"{line} {extra}" if extra else line
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class RecentEvents(logging.Handler):
    """The newest log events, oldest first, for a service that shows its own log."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._events: deque[Mapping[str, Any]] = deque(maxlen=most)

    def emit(self, record: logging.LogRecord) -> None:
        self._events.append(event(record))

    def newest(self, most: int) -> list[Mapping[str, Any]]:
        """At most ``most`` events, oldest first."""
        return list(self._events)[-most:]


def configure_logging(settings: ServiceSettings, recent: RecentEvents | None = None) -> None:
    """Send our loggers to standard error, and to ``recent`` where given. Called once, by a service's entry point."""
    stream = logging.StreamHandler(sys.stderr)
    text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    stream.setFormatter(TextFormatter() if text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [stream, *([recent] if recent is not None else [])]
    root.setLevel(logging.WARNING)
    logging.getLogger("fleetpulse").setLevel(settings.log_level.upper())
    # aiokafka logs every reconnect attempt as an error; our own clients log the outage once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
