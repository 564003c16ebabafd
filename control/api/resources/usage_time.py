"""The time that questions about usage are about, and whose sums answer them."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field

from control.api.fields import WHOLE_NUMBER, Query
from control.api.problems import FieldError, unprocessable
from fleetpulse.settings import DatabaseSettings

Granularity = Literal["minute", "hour", "day"]
WINDOW_SECONDS: Final = 86_400
# Without a granularity, sums are made of the finest buckets that are few enough: 2,880 minutes, 2,160 hours.
FINEST_SECONDS: Final[Mapping[Granularity, float]] = {"minute": 2 * 86_400, "hour": 90 * 86_400, "day": float("inf")}
# Far dates overflow somewhere.
YEARS: Final = range(2000, 2200)


class TimeQuery(Query):
    """Over which time."""

    window_s: Annotated[
        Annotated[int, Field(ge=1), WHOLE_NUMBER] | None,
        Field(description=f"Seconds until now, or until `until`; {WINDOW_SECONDS} when nothing is said"),
    ] = None
    since: Annotated[AwareDatetime | None, Field(description="From this time, instead of window_s")] = None
    until: Annotated[AwareDatetime | None, Field(description="Before this time; now when missing")] = None


def span(query: TimeQuery, now: datetime) -> tuple[datetime, datetime]:
    """From when until when. Raises ProblemError (422)."""
    errors = [
        FieldError(name, f"must be between the years {YEARS[0]} and {YEARS[-1]}")
        for name, moment in (("since", query.since), ("until", query.until))
        if moment is not None and moment.year not in YEARS
    ]
    if errors:
        raise unprocessable(errors)
    until = (query.until or now).astimezone(UTC)
    if query.since is not None and query.window_s is not None:
        raise unprocessable([FieldError("since", "either since or window_s, not both")])
    if query.since is not None:
        since = query.since.astimezone(UTC)
    else:
        try:
            since = until - timedelta(seconds=query.window_s or WINDOW_SECONDS)
        except OverflowError as error:
            raise unprocessable([FieldError("window_s", "reaches too far back")]) from error
    if since >= until:
        raise unprocessable([FieldError("since", "must be before until")])
    return since, until


def level_of(
    asked: Granularity | None, since: datetime, until: datetime, now: datetime, retention: DatabaseSettings
) -> Granularity:
    """Whose sums answer it. Raises ProblemError (422) for sums that are not kept for so long."""
    kept_days: Mapping[Granularity, float] = {
        "minute": retention.retention_minute_days,
        "hour": retention.retention_hour_days,
        "day": float("inf"),
    }
    age_days = (now - since).total_seconds() / 86_400
    if asked is not None:
        if age_days > kept_days[asked]:
            raise unprocessable([FieldError("granularity", f"{asked} values are kept for {kept_days[asked]:g} days")])
        return asked
    seconds = (until - since).total_seconds()
    return next(one for one in FINEST_SECONDS if seconds <= FINEST_SECONDS[one] and age_days <= kept_days[one])


def floor(moment: datetime, level: Granularity) -> datetime:
    """Start of the bucket."""
    minute = moment.replace(second=0, microsecond=0)
    if level == "minute":
        return minute
    return minute.replace(minute=0) if level == "hour" else minute.replace(hour=0, minute=0)
