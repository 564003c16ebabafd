"""Every relation and its columns, as the migrations make them in both profiles."""

from typing import Final

from fleetpulse.stream.dictionary import TABLES, Measure, Table

ROLLUP_SUFFIXES: Final = ("_1m", "_1h", "_1d")
KEYS: Final = {
    "gpu_samples": ("worker_key", "gpu_key"),
    "system_samples": ("worker_key",),
    "engine_samples": ("worker_key", "engine_key"),
}

_OTHERS: Final[dict[str, str]] = {
    "workers": "worker_key worker_id instance_id host_name first_seen_at",
    "gpus": "gpu_key worker_key hw_id gpu_index model first_seen_at",
    "engines": "engine_key worker_key model_id engine_index first_seen_at",
    "metric_series": "series_key worker_key name unit kind temporality attributes digest first_seen_at",
    "metric_points": "time series_key value",
    "metric_histograms": "time series_key count sum minimum maximum bounds buckets",
    "heartbeats": "time received_at worker_key sequence status engine_state interval_seconds requests_waiting"
    " requests_running kv_cache_usage_ratio step_count cpu_utilization_ratio memory_utilization_ratio"
    " gpu_utilization_ratio",
    "heartbeat_statuses": "code name",
    "engine_states": "code name",
    "ingest_offsets": "topic partition topic_id epoch next_offset owner lease_until updated_at",
    "ingest_collectors": "owner lease_until",
    "ingest_gaps": "topic partition from_offset to_offset reason noticed_at",
    "producer_positions": "worker_key topic partition boot_id high_water window_bits updated_at",
    "data_quality": "worker_key hour kind reason count",
    "retention_floors": "relation floor",
    "database_profile": "name",
}
_POSTGRES_ONLY: Final[dict[str, str]] = {
    "rollup_dirty": "relation bucket",
    "rollup_levels": "source target samples time_column width",
}


def rollup_columns(measure: Measure) -> tuple[str, ...]:
    """Columns of a rollup that hold a measure."""
    parts = ("sum", "count", "min", "max", "last")
    if measure.kind == "counter":
        parts = ("count", "min", "max", "first", "last")
    return tuple(f"{measure.column}_{part}" for part in parts)


def expected(profile: str) -> dict[str, tuple[str, ...]]:
    """Columns of each relation, in order."""
    found = {name: tuple(columns.split()) for name, columns in _OTHERS.items()}
    if profile == "postgres":
        found |= {name: tuple(columns.split()) for name, columns in _POSTGRES_ONLY.items()}
    for table in TABLES:
        found[table.name] = ("time", *KEYS[table.name], *table.columns)
        found |= {f"{table.name}{suffix}": _rollup(table) for suffix in ROLLUP_SUFFIXES}
    return found


def _rollup(table: Table) -> tuple[str, ...]:
    measures = (column for measure in table.measures for column in rollup_columns(measure))
    return ("bucket", *KEYS[table.name], "sample_count", *measures)
