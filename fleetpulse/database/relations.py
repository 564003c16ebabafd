"""Every relation and its columns, as the migrations make them in both profiles."""

from dataclasses import dataclass
from typing import Final

from fleetpulse.stream.dictionary import TABLES
from fleetpulse.stream.measure import Measure, Table

ROLLUP_SUFFIXES: Final = ("_1m", "_1h", "_1d")
KEYS: Final = {
    "gpu_samples": ("worker_key", "gpu_key"),
    "system_samples": ("worker_key",),
    "engine_samples": ("worker_key", "engine_key"),
}


@dataclass(frozen=True, slots=True)
class Group:
    """Rollups of many of a samples table's series together, each level made from the same level of ``source``."""

    name: str
    source: str
    samples: str
    keys: tuple[str, ...]


GROUPS: Final = (
    Group("gpu_worker", "gpu_samples", "gpu_samples", ("worker_key",)),
    Group("gpu_fleet", "gpu_worker", "gpu_samples", ()),
    Group("system_fleet", "system_samples", "system_samples", ()),
    Group("engine_worker", "engine_samples", "engine_samples", ("worker_key",)),
    Group("engine_fleet", "engine_worker", "engine_samples", ()),
)
USAGE: Final = "finops.inference_usage"
# What there is at every level, in the order to make it in.
ROLLED_UP: Final = (*KEYS, *(group.name for group in GROUPS))

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
    "organizations": "organization_id slug name created_at",
    "users": "user_id organization_id email password_digest scopes created_at disabled_at",
    "models": "model_id hugging_face_id name context_tokens public active created_at",
    "model_aliases": "alias model_id",
    "offerings": "offering_id organization_id code model_id active created_at",
    "model_access": "organization_id model_id granted_at",
    "api_keys": "key_id organization_id name prefix digest scopes model_ids requests_per_minute tokens_per_minute"
    " tokens_per_month created_at expires_at revoked_at",
    "providers": "provider catalogue_read_at failure",
    "zones": "provider zone available",
    "instance_types": "provider instance_type gpu_model gpu_count gpu_memory_bytes cpu_count memory_bytes"
    " price_per_hour currency zones available",
    "deployments": "deployment_id organization_id name model_id provider zone instance_type instance_count created_by"
    " correlation_id created_at",
    "instances": "instance_id deployment_id organization_id provider zone instance_type model_id state state_since"
    " version machine_id address agent_url engine_url price_per_hour currency options failure correlation_id created_by"
    " created_at ready_at terminated_at",
    "instance_transitions": "transition_id instance_id version from_state to_state reason detail evidence actor"
    " correlation_id at",
    "lifecycle_outbox": "outbox_id instance_id message created_at",
    "action_log": "action_id at action succeeded instance_id provider actor duration_seconds detail correlation_id",
    "volumes": "provider zone volume_id instance_id name size_bytes state attempts failure created_at deleted_at"
    " orphan_since retry_at",
    "sessions": "session_id user_id created_at expires_at ended_at",
    "idempotency_keys": "principal key_digest method path body_digest status answer created_at expires_at",
    "job_states": "state job delay_seconds",
    "job_work": "subject job due_at attempts owner lease_until token memory",
    "lifecycle_publisher": "single owner lease_until token",
    "health_results": "result_id instance_id at probe succeeded detail",
    "orphan_machines": "provider zone machine_id instance_id instance_type status ours price_per_hour currency"
    " first_seen_at last_seen_at resolved_at",
    "outdated_agents": "instance_id worker_id agent_version agent_checksum wanted_version noticed_at",
    USAGE: "time record_id created_at request_id attempt instance_id worker_id organization_id key_id model_id model"
    " path is_stream outcome status duration_seconds ended_at first_token_seconds input_tokens output_tokens"
    " total_tokens cached_tokens token_source price_per_hour currency busy_seconds cost",
    "finops.usage_marks": "instance_id from_time to_time",
    "finops.token_ledger": "window_start window_seconds instance_id worker_id status reason proxy_requests"
    " proxy_unknown_requests proxy_input_tokens proxy_output_tokens engine_input_tokens engine_output_tokens"
    " engine_resets gap_input_tokens gap_output_tokens gap_ratio computed_at",
    "finops.ledger_passes": "single finished_at",
    "retention_floors": "relation floor",
    "database_profile": "name",
}
_REQUEST_KEYS: Final = "instance_id organization_id key_id model_id model"
_REQUEST_SUMS: Final = (
    "total_requests successful_requests refused_requests failed_requests broken_requests cancelled_requests"
    " unknown_token_requests input_tokens output_tokens total_tokens cached_tokens duration_seconds_sum"
    " duration_seconds_min duration_seconds_max first_token_seconds_sum first_token_seconds_count"
    " first_token_seconds_min first_token_seconds_max busy_seconds cost currency unpriced_requests last_request_at"
)
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


def group_columns(measure: Measure) -> tuple[str, ...]:
    """Columns of a group's rollup that hold a measure."""
    parts = ("increase", "count", "series") if measure.kind == "counter" else ("sum", "count", "min", "max")
    return tuple(f"{measure.column}_{part}" for part in parts)


def expected(profile: str) -> dict[str, tuple[str, ...]]:
    """Columns of each relation, in order."""
    found = {name: tuple(columns.split()) for name, columns in _OTHERS.items()}
    for usage, requests in zip(ROLLUP_SUFFIXES, ("", "_1h", "_1d"), strict=True):
        found[f"{USAGE}{usage}"] = ("bucket", *_REQUEST_KEYS.split(), *_REQUEST_SUMS.split())
        found[f"instance_request_metrics{requests}"] = ("bucket", "instance_id", *_REQUEST_SUMS.split())
    if profile == "postgres":
        found |= {name: tuple(columns.split()) for name, columns in _POSTGRES_ONLY.items()}
    for table in TABLES:
        found[table.name] = ("time", *KEYS[table.name], *table.columns)
        found |= {f"{table.name}{suffix}": _rollup(table) for suffix in ROLLUP_SUFFIXES}
        groups = [group for group in GROUPS if group.samples == table.name]
        found |= {f"{group.name}{suffix}": _grouped(group, table) for group in groups for suffix in ROLLUP_SUFFIXES}
    return found


def _rollup(table: Table) -> tuple[str, ...]:
    measures = (column for measure in table.measures for column in rollup_columns(measure))
    return ("bucket", *KEYS[table.name], "sample_count", *measures)


def _grouped(group: Group, table: Table) -> tuple[str, ...]:
    measures = (column for measure in table.measures for column in group_columns(measure))
    return ("bucket", *group.keys, "series_count", "sample_count", *measures)
