"""How long each relation keeps its rows, and whether the settings make sense together."""

from datetime import timedelta
from typing import Final

from fleetpulse.database.relations import ROLLED_UP, USAGE
from fleetpulse.settings import DatabaseSettings, SettingsError
from fleetpulse.stream.dictionary import TABLES

SAMPLES: Final = tuple(table.name for table in TABLES)
GENERIC: Final = ("metric_points", "metric_histograms")


def retention(settings: DatabaseSettings) -> dict[str, timedelta]:
    """How long each relation's rows are kept; day rollups, which are not in it, for ever."""
    raw, minute = timedelta(days=settings.retention_raw_days), timedelta(days=settings.retention_minute_days)
    hour, heartbeat = timedelta(days=settings.retention_hour_days), timedelta(days=settings.retention_heartbeat_days)
    return (
        dict.fromkeys((*SAMPLES, *GENERIC), raw)
        | {"heartbeats": heartbeat}
        | {f"{name}_1m": minute for name in (*ROLLED_UP, USAGE)}
        | {f"{name}_1h": hour for name in (*ROLLED_UP, USAGE)}
        | {USAGE: timedelta(days=settings.retention_usage_days)}
    )


def check(settings: DatabaseSettings) -> None:
    """Raises SettingsError when a rollup would be kept for a shorter time than what it is made from."""
    finer, coarser = ("RETENTION_RAW_DAYS", "RETENTION_MINUTE_DAYS"), ("RETENTION_MINUTE_DAYS", "RETENTION_HOUR_DAYS")
    for low, high in (finer, coarser):
        shorter, longer = getattr(settings, high.lower()), getattr(settings, low.lower())
        if shorter < longer:
            raise SettingsError(
                f"FLEETPULSE_DATABASE_{high}: {shorter:g} is less than FLEETPULSE_DATABASE_{low} ({longer:g});"
                " a rollup must be kept at least as long as what it is made from"
            )
