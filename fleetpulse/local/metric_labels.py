"""What values a metric's labels may have, and the golden signals of each service.

No label comes from a client: its values are a closed set, or as many as there are things that the label names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, get_args

from agent.http import DRIVER_STATES, ENGINE_STATES, XID_BLAME
from agent.transport import KINDS
from collector.staleness import MOST_NAMED_WORKERS
from control import metrics as control_metrics
from fleetpulse.database.relations import expected
from fleetpulse.stream import dictionary, topics
from fleetpulse.stream.errors import MessageError
from fleetpulse.stream.fleet_view import STATES, Observation
from fleetpulse.stream.heartbeat import Heartbeat
from fleetpulse.stream.lifecycle import InstanceState
from fleetpulse.stream.usage import UsageOutcome


@dataclass(frozen=True, slots=True)
class Label:
    """Values of a label: ``values`` where they are a closed set, and never more than ``most`` in one process."""

    text: str
    most: int
    values: frozenset[str] = frozenset()


def _closed(*values: str) -> Label:
    return Label(", ".join(f"`{value}`" for value in values), len(values), frozenset(values))


def _many(text: str, most: int) -> Label:
    return Label(text, most)


def _reasons(error: type[MessageError]) -> set[str]:
    return {error.reason}.union(*(_reasons(one) for one in error.__subclasses__()))


_STALE_WORKERS: Final = _many(f"workers in trouble; {MOST_NAMED_WORKERS} at most", MOST_NAMED_WORKERS)
_TROUBLED_WORKERS: Final = _many(
    f"workers in trouble; {control_metrics.MOST_NAMED_WORKERS} at most", control_metrics.MOST_NAMED_WORKERS
)
# Beyond this many models a fleet is another kind of thing.
_MODELS: Final = _many("Hugging Face ids of the models in the database, never a client's word", 1_000)
_MESSAGE_REASONS: Final = _closed(*sorted(_reasons(MessageError)))
_RELATIONS: Final = sorted(expected("timescale"))
_COLUMNS: Final = sorted({column for table in dictionary.TABLES for column in table.columns})
_STATUS: Final = _many("HTTP statuses that are answered", 60)
# What the collector holds a single worker to.
_SERIES_OF_A_HOST: Final = 1_024

LABELS: Final[Mapping[str, Mapping[str, Label]]] = {
    "agent": {
        "worker_id": _many("this worker", 1),
        "instance_id": _many("this worker", 1),
        "host_name": _many("this host", 1),
        "version": _many("this agent's", 1),
        "source": _closed("system", "gpu", "engine"),
        "state": _closed(*dict.fromkeys((*ENGINE_STATES, *DRIVER_STATES))),
        "kind": _closed(*KINDS),
        "hw_id": _many("GPUs of this host, by their UUIDs", _SERIES_OF_A_HOST),
        "blame": _closed(*XID_BLAME),
        "model": _many("models of the engine beside the agent", _SERIES_OF_A_HOST),
        "engine": _many("data-parallel engines beside the agent", _SERIES_OF_A_HOST),
        "measure": _many("columns of `engine_samples`", len(dictionary.ENGINE.columns)),
    },
    "collector": {
        "topic": _closed(*(topic.name for topic in topics.ALL)),
        "relation": _many("relations of the database", len(_RELATIONS)),
        "column": _many("columns of samples and heartbeats", len(_COLUMNS) + len(Heartbeat.__struct_fields__) + 10),
        "verdict": _closed("clamped", "rejected"),
        "kind": _closed("clamped", "rejected", "late", "duplicate", "out_of_order", "vanished"),
        "reason": _many("reasons in [collector.md](collector.md) and [stream.md](stream.md)", 40),
        "direction": _closed("input", "output"),
        "route": _closed("/internal/worker/heartbeat", "/v1/metrics"),
        "status": _many("HTTP statuses of the door; `known` and `unknown` in the ledger", 60),
        "work": _many("kinds of upkeep", 12),
        "state": _closed(*STATES),
        "worker_id": _STALE_WORKERS,
        "instance_id": _STALE_WORKERS,
    },
    "control": {
        "route": _many("routes of the API, never paths", 150),
        "method": _closed("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"),
        "status": _STATUS,
        "state": _closed(*dict.fromkeys((*STATES, *get_args(InstanceState)))),
        "observation": _closed(*get_args(Observation)),
        "job": _many("jobs in [jobs.md](jobs.md)", 30),
        "outcome": _many("words of the jobs' and providers' code", 60),
        "provider": _many("providers in the settings", 30),
        "call": _many("calls of the provider interface", 30),
        "currency": _many("currencies of the providers' prices", 10),
        "reason": _many("reasons in [jobs.md](jobs.md) and [stream.md](stream.md)", 40),
        "worker_id": _TROUBLED_WORKERS,
        "instance_id": _TROUBLED_WORKERS,
    },
    "proxy": {
        "model": _MODELS,
        "outcome": _closed(*get_args(UsageOutcome), "rejected", "limited"),
        "status": _STATUS,
        "reason": _MESSAGE_REASONS,
        "direction": _closed("input", "output"),
        "are": _closed("known", "ready", "serving", "fresh", "ejected"),
        "gen_ai_operation_name": _closed("chat", "text_completion", "embeddings", "other"),
        "gen_ai_request_model": _MODELS,
    },
}

SIGNALS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "agent": {
        "traffic": ("fleetpulse_agent_messages_sent_total", "fleetpulse_agent_samples_total"),
        "errors": ("fleetpulse_agent_deliveries_failed_total", "fleetpulse_agent_source_failures_total"),
        "latency": ("fleetpulse_agent_delivery_seconds", "fleetpulse_agent_sample_seconds"),
        "saturation": ("fleetpulse_agent_spool_bytes", "fleetpulse_agent_spool_dropped_total"),
    },
    "collector": {
        "traffic": ("fleetpulse_collector_messages_total", "fleetpulse_collector_rows_total"),
        "errors": ("fleetpulse_collector_write_failures_total", "fleetpulse_collector_dead_letters_total"),
        "latency": ("fleetpulse_collector_heartbeat_commit_seconds", "fleetpulse_collector_write_duration_seconds"),
        "saturation": ("fleetpulse_collector_lag_messages",),
    },
    "control": {
        "traffic": ("fleetpulse_control_http_requests_total", "fleetpulse_control_job_items_claimed_total"),
        "errors": ("fleetpulse_control_http_requests_total", "fleetpulse_control_job_outcomes_total"),
        "latency": ("fleetpulse_control_http_request_duration_seconds", "fleetpulse_control_job_duration_seconds"),
        "saturation": (
            "fleetpulse_control_database_pool_requests_waiting",
            "fleetpulse_control_job_oldest_due_seconds",
        ),
    },
    "proxy": {
        "traffic": ("fleetpulse_proxy_requests_total", "fleetpulse_proxy_tokens_total"),
        "errors": ("fleetpulse_proxy_requests_total", "fleetpulse_proxy_attempts_total"),
        "latency": ("gen_ai_server_time_to_first_token_seconds", "gen_ai_server_time_per_output_token_seconds"),
        "saturation": ("fleetpulse_proxy_requests_in_flight", "fleetpulse_proxy_engine_requests_waiting"),
    },
}
