"""A span for each item of work, where OpenTelemetry's API is installed; else the structured log has to do."""

import contextlib
from typing import Final

from control.jobs.framework.item import Item

try:
    from opentelemetry import trace
except ImportError:
    _tracer = None
else:
    _tracer = trace.get_tracer("fleetpulse.control.jobs")

NONE: Final = contextlib.nullcontext()


def span(item: Item) -> contextlib.AbstractContextManager[object]:
    """The span of the work on an item; an error that leaves it is recorded by the API."""
    if _tracer is None:
        return NONE
    attributes: dict[str, str | int] = {
        "fleetpulse.job": item.job,
        "fleetpulse.subject": item.subject,
        "fleetpulse.attempts": item.attempts,
    }
    return _tracer.start_as_current_span(f"job {item.job}", attributes=attributes)
