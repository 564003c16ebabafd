"""One worker: its host, its GPUs, its engine."""
# ruff: noqa: S608 - Grafana runs these queries, and all of each is written here

from typing import Final

from dashboards.model import Dashboard, Panel, Query, Row, Variable, prom, sql

_INFO: Final = '* on (job, instance) group_left () fleetpulse_agent_info{worker_id="$worker"}'
_CHOSEN: Final = (
    "JOIN workers AS w ON w.worker_key = s.worker_key"
    " WHERE w.worker_id = ${worker:sqlstring} AND $__timeFilter(s.bucket)"
)


def _samples(table: str, *values: str) -> Query:
    """Of the host, a series for each value."""
    return sql(
        f'SELECT $__timeGroup(s.bucket, $__interval) AS "time", {", ".join(values)}'
        f" FROM {table}_1m AS s {_CHOSEN} GROUP BY 1 ORDER BY 1"
    )


def _each(table: str, named: str, join: str, value: str) -> Query:
    """A series for each GPU or engine."""
    return sql(
        f'SELECT $__timeGroup(s.bucket, $__interval) AS "time", {named} AS "metric", {value}'
        f" FROM {table}_1m AS s {join} {_CHOSEN} GROUP BY 1, 2 ORDER BY 1"
    )


def _gpu(value: str, name: str) -> Query:
    label = f"concat('GPU ', coalesce(g.gpu_index::text, g.hw_id){_then(name)})"
    return _each("gpu_samples", label, "JOIN gpus AS g ON g.gpu_key = s.gpu_key", value)


def _engine(value: str, name: str) -> Query:
    return _each(
        "engine_samples", f"concat(e.model_id{_then(name)})", "JOIN engines AS e ON e.engine_key = s.engine_key", value
    )


def _then(name: str) -> str:
    return f", ' {name}'" if name else ""


def _mean(measure: str, name: str = "value") -> str:
    return f'sum(s.{measure}_sum) / nullif(sum(s.{measure}_count), 0) AS "{name}"'


def _rate(measure: str, name: str = "value") -> str:
    """Of a counter, each second; a counter that was reset has none for that minute."""
    risen = f"CASE WHEN s.{measure}_last >= s.{measure}_first THEN s.{measure}_last - s.{measure}_first END"
    return f'sum({risen}) / nullif(count({risen}) * 60.0, 0) AS "{name}"'


DASHBOARD: Final = Dashboard(
    "worker",
    "Worker",
    "One worker: host, GPUs and engine over time.",
    [
        Row(
            "Engine",
            [
                Panel(
                    "Requests",
                    "Requests being worked on and waiting.",
                    "short",
                    [_engine(_mean("requests_running"), "running"), _engine(_mean("requests_waiting"), "waiting")],
                ),
                Panel(
                    "Tokens",
                    "Tokens read and made each second.",
                    "short",
                    [_engine(_rate("prompt_tokens_total"), "read"), _engine(_rate("generation_tokens_total"), "made")],
                ),
                Panel(
                    "Steps",
                    "Steps of the engine each second; with requests and without steps it is stalled.",
                    "short",
                    [_engine(_rate("steps_total"), "steps")],
                ),
                Panel(
                    "KV cache",
                    "Share of the KV cache in use.",
                    "percentunit",
                    [_engine(_mean("kv_cache_usage_ratio"), "")],
                    warn=0.9,
                    bad=0.98,
                    most=1,
                ),
                Panel(
                    "Prefix cache",
                    "Tokens looked up and found in the prefix cache each second.",
                    "short",
                    [
                        _engine(_rate("prefix_cache_queries_total"), "looked up"),
                        _engine(_rate("prefix_cache_hits_total"), "found"),
                    ],
                ),
                Panel(
                    "Preemptions",
                    "Requests pushed out of the KV cache each second.",
                    "short",
                    [_engine(_rate("preemptions_total"), "preempted")],
                ),
            ],
        ),
        Row(
            "GPUs",
            [
                Panel(
                    "Utilisation",
                    "Share of time in which at least one kernel ran.",
                    "percentunit",
                    [_gpu(_mean("utilization_ratio"), "")],
                    most=1,
                ),
                Panel("Memory", "Memory in use.", "bytes", [_gpu(_mean("memory_used_bytes"), "")]),
                Panel(
                    "Temperature and limit",
                    "Core temperature, and where the device slows itself down.",
                    "celsius",
                    [_gpu(_mean("temperature_celsius"), ""), _gpu(_mean("temperature_limit_celsius"), "limit")],
                ),
                Panel("Power", "Power drawn.", "watt", [_gpu(_mean("power_watts"), "")]),
                Panel("Clock", "Clock of the streaming multiprocessors.", "hertz", [_gpu(_mean("sm_clock_hertz"), "")]),
                Panel(
                    "Faults",
                    "XID events and uncorrected ECC errors since the counters began.",
                    "short",
                    [
                        _gpu('max(s.xid_errors_total_last) AS "value"', "XID"),
                        _gpu('max(s.uncorrected_errors_total_last) AS "value"', "ECC"),
                    ],
                    warn=1,
                ),
            ],
        ),
        Row(
            "Host",
            [
                Panel(
                    "Processors",
                    "Share of CPU time not idle.",
                    "percentunit",
                    [_samples("system_samples", _mean("cpu_utilization_ratio", "busy"))],
                    most=1,
                ),
                Panel(
                    "Memory",
                    "Memory in use and installed.",
                    "bytes",
                    [
                        _samples(
                            "system_samples",
                            _mean("memory_used_bytes", "used"),
                            _mean("memory_total_bytes", "installed"),
                        )
                    ],
                ),
                Panel(
                    "Network",
                    "Bytes received and sent each second.",
                    "Bps",
                    [
                        _samples(
                            "system_samples",
                            _rate("network_received_bytes_total", "received"),
                            _rate("network_sent_bytes_total", "sent"),
                        )
                    ],
                ),
            ],
        ),
        Row(
            "Agent",
            [
                Panel(
                    "Heartbeats",
                    "Delay from a heartbeat's making, by the worker's clock, to its reading by the collector.",
                    "s",
                    [
                        sql(
                            'SELECT $__timeGroup(h.time, $__interval) AS "time",'
                            ' avg(extract(epoch FROM h.received_at - h.time)) AS "delay"'
                            " FROM heartbeats AS h JOIN workers AS w USING (worker_key)"
                            " WHERE w.worker_id = ${worker:sqlstring} AND $__timeFilter(h.time) GROUP BY 1 ORDER BY 1"
                        )
                    ],
                ),
                Panel(
                    "Deliveries",
                    "Messages that arrived, and batches that did not, each second.",
                    "short",
                    [
                        prom(
                            f"sum by (kind) (rate(fleetpulse_agent_messages_sent_total[$__rate_interval]) {_INFO})",
                            "{{kind}}",
                        ),
                        prom(
                            f"sum by (kind) (rate(fleetpulse_agent_deliveries_failed_total[$__rate_interval]) {_INFO})",
                            "{{kind}} failed",
                        ),
                    ],
                ),
                Panel(
                    "Spool",
                    "Bytes that wait on disk for the broker.",
                    "bytes",
                    [prom(f"sum by (kind) (fleetpulse_agent_spool_bytes {_INFO})", "{{kind}}")],
                ),
            ],
        ),
    ],
    [Variable("worker", "Worker", "SELECT DISTINCT worker_id FROM workers ORDER BY 1")],
)
