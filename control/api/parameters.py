"""Reading query parameters: what is wrong with each is collected, so that one answer names all of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal, get_args

from aiohttp import web

from control.api.problems import FieldError, unprocessable
from control.api.statements import Level
from fleetpulse.settings import DatabaseSettings

Granularity = Literal["second", "minute", "hour", "day"]
GRANULARITIES: Final[tuple[Granularity, ...]] = get_args(Granularity)
LEVELS: Final[Mapping[Granularity, Level]] = {"second": "raw", "minute": "1m", "hour": "1h", "day": "1d"}
WIDTHS: Final[Mapping[Granularity, timedelta]] = {
    # Not a bucket but the longest time between two raw readings that still makes a rate: two and a half of the slowest
    # common interval (a stock collector's 60 s). Longer is a gap.
    "second": timedelta(seconds=150),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}
# Without a granularity, a window gets the finest that makes a readable chart of it: 720 raw samples at 5 s, 1,440
# minutes, 2,160 hours.
COMFORTABLE_SECONDS: Final[Mapping[Granularity, float]] = {
    "second": 3_600,
    "minute": 86_400,
    "hour": 90 * 86_400,
    "day": float("inf"),
}
WINDOW_DEFAULT_SECONDS: Final = 300
# Days are kept for good; this is the longest any retention may be set to.
DAYS_KEPT: Final = 36_500.0
IDENTITIES_MAXIMUM: Final = 500
# As heartbeats have it; a comma separates.
_IDENTITY: Final = re.compile(r"[\x21-\x2b\x2d-\x7e]{1,200}")
_WHOLE_NUMBER: Final = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class ActivityParameters:
    """What an activity request asks for. No identities means all."""

    window_seconds: int
    granularity: Granularity
    instance_ids: list[str] | None
    worker_ids: list[str] | None


def refuse_unknown(request: web.Request, known: Sequence[str]) -> list[FieldError]:
    """A misspelt parameter would otherwise silently do nothing."""
    return [
        FieldError(_printable(name), f"unknown parameter; known: {', '.join(known) or 'none'}")
        for name in dict.fromkeys(request.query)
        if name not in known
    ]


def activity(request: web.Request, retention: DatabaseSettings) -> ActivityParameters:
    """Read an activity request. Raises ProblemError (422) that names every field at fault."""
    errors = refuse_unknown(request, ("window_s", "granularity", "instance_id", "worker_id"))
    window = _window(request, errors)
    chosen = _granularity(request, errors)
    instance_ids = _identities(request, "instance_id", errors)
    worker_ids = _identities(request, "worker_id", errors)
    kept = retained_seconds(retention)
    granularity = chosen or _comfortable(window, kept)
    if window > kept[granularity]:
        errors.append(FieldError("window_s", f"{granularity} values are kept for {kept[granularity]:.0f} s"))
    if errors:
        raise unprocessable(errors)
    return ActivityParameters(window, granularity, instance_ids, worker_ids)


def _comfortable(window: int, kept: Mapping[Granularity, float]) -> Granularity:
    return next((one for one in GRANULARITIES if window <= min(COMFORTABLE_SECONDS[one], kept[one])), "day")


def retained_seconds(retention: DatabaseSettings) -> Mapping[Granularity, float]:
    """How far back each granularity reaches."""
    days: Mapping[Granularity, float] = {
        "second": retention.retention_raw_days,
        "minute": retention.retention_minute_days,
        "hour": retention.retention_hour_days,
        "day": DAYS_KEPT,
    }
    return {granularity: 86_400 * kept for granularity, kept in days.items()}


def _one(request: web.Request, name: str, errors: list[FieldError]) -> str | None:
    values = request.query.getall(name, [])
    if len(values) > 1:
        errors.append(FieldError(name, "given more than once"))
    return values[0] if values else None


def _window(request: web.Request, errors: list[FieldError]) -> int:
    text = _one(request, "window_s", errors)
    if text is None:
        return WINDOW_DEFAULT_SECONDS
    if not _WHOLE_NUMBER.fullmatch(text) or int(text) < 1:
        errors.append(FieldError("window_s", "must be a whole number of seconds, 1 or more"))
        return WINDOW_DEFAULT_SECONDS
    return int(text)


def _granularity(request: web.Request, errors: list[FieldError]) -> Granularity | None:
    text = _one(request, "granularity", errors)
    if text is None:
        return None
    for granularity in GRANULARITIES:
        if text == granularity:
            return granularity
    errors.append(FieldError("granularity", f"must be one of {', '.join(GRANULARITIES)}"))
    return None


def _identities(request: web.Request, name: str, errors: list[FieldError]) -> list[str] | None:
    """All values of a parameter that may be repeated and may hold a comma-separated list."""
    if name not in request.query:
        return None
    identities = [part for value in request.query.getall(name) for part in value.split(",")]
    if len(identities) > IDENTITIES_MAXIMUM:
        errors.append(FieldError(name, f"{len(identities)} are too many; at most {IDENTITIES_MAXIMUM}"))
    elif any(not is_identity(one) for one in identities):
        errors.append(FieldError(name, "must be 1 to 200 printable ASCII characters without spaces and commas"))
    return identities


def is_identity(text: str) -> bool:
    """Whether a worker or instance could have this name."""
    return _IDENTITY.fullmatch(text) is not None


def _printable(name: str) -> str:
    return name[:100].encode("unicode_escape").decode()
