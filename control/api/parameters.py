"""What activity requests ask for: how far back, how fine, of whom, of how many together, and which fields."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Annotated, ClassVar, Final, Literal, get_args

from pydantic import BeforeValidator, Field

from control.api.families import Family, Grouping
from control.api.fields import WHOLE_NUMBER, Query
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
FIELDS_MAXIMUM: Final = 100


def _split(value: object) -> object:
    """All values of a parameter that may be repeated and may hold a comma-separated list."""
    return [part for text in value for part in text.split(",")] if isinstance(value, list) else value


Identities = Annotated[
    # As heartbeats have it; a comma separates.
    list[Annotated[str, Field(pattern=r"^[\x21-\x2b\x2d-\x7e]{1,200}$")]],
    BeforeValidator(_split),
    Field(max_length=IDENTITIES_MAXIMUM),
]


FieldNames = Annotated[
    list[Annotated[str, Field(pattern=r"^[a-z0-9_]{1,100}$")]],
    BeforeValidator(_split),
    Field(max_length=FIELDS_MAXIMUM),
]
GROUP_BY: Final = "Average over what: rows of each series, of each worker, or of the whole fleet"


class ActivityQuery(Query):
    """Parameters of an activity request."""

    repeatable: ClassVar = ("instance_id", "worker_id", "fields")
    window_s: Annotated[int, Field(ge=1, description="Seconds until now"), WHOLE_NUMBER] = WINDOW_DEFAULT_SECONDS
    granularity: Annotated[Granularity | None, Field(description="Unless given, the finest that suits the window")] = (
        None
    )
    instance_id: Annotated[Identities | None, Field(description="Only these instances; may be repeated")] = None
    worker_id: Annotated[Identities | None, Field(description="Only these workers; may be repeated")] = None
    fields: Annotated[
        FieldNames | None, Field(description="Only these measured fields, beside who and when; may be repeated")
    ] = None


class GpuQuery(ActivityQuery):
    """Of GPUs."""

    group_by: Annotated[Literal["gpu", "worker", "fleet"], Field(description=GROUP_BY)] = "gpu"


class SystemQuery(ActivityQuery):
    """Of hosts."""

    group_by: Annotated[Literal["worker", "fleet"], Field(description=GROUP_BY)] = "worker"


class EngineQuery(ActivityQuery):
    """Of models on engines."""

    group_by: Annotated[Literal["engine", "worker", "fleet"], Field(description=GROUP_BY)] = "engine"


@dataclass(frozen=True, slots=True)
class ActivityParameters:
    """What an activity request asks for. No identities means all, and no fields; no group means each series."""

    window_seconds: int
    granularity: Granularity
    instance_ids: list[str] | None
    worker_ids: list[str] | None
    group: Grouping | None = None
    fields: frozenset[str] | None = None


def activity(
    query: GpuQuery | SystemQuery | EngineQuery, family: Family, retention: DatabaseSettings
) -> ActivityParameters:
    """Settle what was left open. Raises ProblemError (422) for what there is not."""
    window = query.window_s
    kept = retained_seconds(retention)
    group = family.group(query.group_by)
    granularity = query.granularity or _comfortable(window, kept, grouped=group is not None)
    errors = []
    if window > kept[granularity]:
        errors.append(FieldError("window_s", f"{granularity} values are kept for {kept[granularity]:.0f} s"))
    if group is not None and granularity == "second":
        errors.append(FieldError("granularity", f"group_by={group} has no seconds, but minute, hour and day"))
    if group == "fleet" and (query.worker_id or query.instance_id):
        named = "worker_id" if query.worker_id else "instance_id"
        errors.append(FieldError(named, "the fleet is all workers: leave it out, or ask with group_by=worker"))
    known = _known_fields(family, group, granularity != "second")
    if unknown := sorted(set(query.fields or ()) - known.keys()):
        errors.append(FieldError("fields", f"unknown: {', '.join(unknown)}; known: {', '.join(known)}"))
    if errors:
        raise unprocessable(errors)
    wanted = frozenset(query.fields) if query.fields else None
    return ActivityParameters(window, granularity, query.instance_id, query.worker_id, group, wanted)


@cache
def _known_fields(family: Family, group: Grouping | None, coarse: bool) -> dict[str, None]:
    return dict.fromkeys(name for name, _, _ in family.measured(group, coarse=coarse))


def _comfortable(window: int, kept: Mapping[Granularity, float], *, grouped: bool) -> Granularity:
    there = (one for one in GRANULARITIES if not (grouped and one == "second"))
    return next((one for one in there if window <= min(COMFORTABLE_SECONDS[one], kept[one])), "day")


def retained_seconds(retention: DatabaseSettings) -> Mapping[Granularity, float]:
    """How far back each granularity reaches."""
    days: Mapping[Granularity, float] = {
        "second": retention.retention_raw_days,
        "minute": retention.retention_minute_days,
        "hour": retention.retention_hour_days,
        "day": DAYS_KEPT,
    }
    return {granularity: 86_400 * kept for granularity, kept in days.items()}
