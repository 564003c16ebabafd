"""The fleet: how it is, what it does, and who is in trouble."""
# ruff: noqa: S608 - Grafana runs these queries, and all of each is written here

from typing import Final

from dashboards.model import Dashboard, Panel, Row, prom, prom_table, sql, sql_table

_TIME: Final = '$__timeGroup(bucket, $__interval) AS "time"'


def _group(relation: str, *values: str) -> str:
    return f"SELECT {_TIME}, {', '.join(values)} FROM {relation} WHERE $__timeFilter(bucket) GROUP BY 1 ORDER BY 1"


def _mean(measure: str, name: str) -> str:
    return f'sum({measure}_sum) / nullif(sum({measure}_count), 0) AS "{name}"'


def _total(measure: str, name: str) -> str:
    """Of all series together: their mean, as often as there are series."""
    return f'sum({measure}_sum) / nullif(sum({measure}_count), 0) * max(series_count) AS "{name}"'


def _rate(measure: str, name: str) -> str:
    return f'sum({measure}_increase) / nullif(count(*) * 60.0, 0) AS "{name}"'


_WORKERS: Final = """
SELECT w.worker_id AS "worker", s.name AS "status", e.name AS "engine", h.time AS "last heard",
    h.gpu_utilization_ratio AS "GPU", h.kv_cache_usage_ratio AS "KV cache", h.requests_running AS "running",
    h.requests_waiting AS "waiting"
FROM (SELECT DISTINCT ON (worker_id) worker_id, worker_key FROM workers ORDER BY worker_id, worker_key DESC) AS w
CROSS JOIN LATERAL (
    SELECT * FROM heartbeats WHERE worker_key = w.worker_key AND $__timeFilter(time) ORDER BY time DESC LIMIT 1
) AS h
JOIN heartbeat_statuses AS s ON s.code = h.status
LEFT JOIN engine_states AS e ON e.code = h.engine_state
ORDER BY h.requests_waiting DESC NULLS LAST, 1 LIMIT 500
"""

# Workers in trouble, and a 0 where there are none.
_TROUBLE: Final = " or ".join(
    f'label_replace(max by (worker_id, instance_id) (fleetpulse_control_worker_{metric}_seconds), "trouble", "{word}",'
    ' "", "")'
    for metric, word in (("silent", "silent"), ("stalled", "stalled"), ("clock_skew", "clock"))
)

DASHBOARD: Final = Dashboard(
    "fleet",
    "Fleet",
    "Every worker as one: state, load, GPUs, and who is in trouble.",
    [
        Row(
            "Now",
            [
                Panel(
                    "Workers alive",
                    "Workers that were heard within 3.3 of their heartbeats.",
                    "short",
                    [prom('max(fleetpulse_control_workers{state="alive"})')],
                    "stat",
                    4,
                    4,
                ),
                Panel(
                    "Workers stale",
                    "Workers that fell silent and were not terminated.",
                    "short",
                    [prom('max(fleetpulse_control_workers{state="stale"})')],
                    "stat",
                    4,
                    4,
                    warn=1,
                    bad=5,
                ),
                Panel(
                    "Pipeline blind",
                    "1 while silence says more about the pipeline than about workers.",
                    "short",
                    [prom("max(fleetpulse_control_mass_silence)")],
                    "stat",
                    4,
                    4,
                    bad=1,
                ),
                Panel(
                    "Alerts firing",
                    "Alerts of fleetpulse, without the dead-man's switch.",
                    "short",
                    [
                        prom(
                            'count(ALERTS{alertstate="firing", alertname=~"Fleetpulse.+", severity!="none"})'
                            " or vector(0)"
                        )
                    ],
                    "stat",
                    4,
                    4,
                    warn=1,
                    bad=5,
                ),
                Panel(
                    "GPUs",
                    "GPUs that agents show to Prometheus.",
                    "short",
                    [prom("count(fleetpulse_agent_gpu_failed_ratio)")],
                    "stat",
                    4,
                    4,
                ),
                Panel(
                    "GPUs lost",
                    "GPUs that do not answer their driver.",
                    "short",
                    [prom("sum(fleetpulse_agent_gpu_failed_ratio)")],
                    "stat",
                    4,
                    4,
                    bad=1,
                ),
            ],
        ),
        Row(
            "Load",
            [
                Panel(
                    "Requests in engines",
                    "Requests being worked on and waiting, all engines together.",
                    "short",
                    [
                        sql(
                            _group(
                                "engine_fleet_1m",
                                _total("requests_running", "running"),
                                _total("requests_waiting", "waiting"),
                            )
                        )
                    ],
                ),
                Panel(
                    "Tokens",
                    "Tokens that engines read and made each second.",
                    "short",
                    [
                        sql(
                            _group(
                                "engine_fleet_1m",
                                _rate("prompt_tokens_total", "read"),
                                _rate("generation_tokens_total", "made"),
                            )
                        )
                    ],
                ),
                Panel(
                    "KV cache",
                    "Share of the engines' KV caches in use: mean and fullest.",
                    "percentunit",
                    [
                        sql(
                            _group(
                                "engine_fleet_1m",
                                _mean("kv_cache_usage_ratio", "mean"),
                                'max(kv_cache_usage_ratio_max) AS "fullest"',
                            )
                        )
                    ],
                    warn=0.9,
                    bad=0.98,
                    most=1,
                ),
            ],
        ),
        Row(
            "GPUs and hosts",
            [
                Panel(
                    "GPU utilisation",
                    "Share of time in which at least one kernel ran, all GPUs.",
                    "percentunit",
                    [
                        sql(
                            _group(
                                "gpu_fleet_1m",
                                _mean("utilization_ratio", "mean"),
                                'max(utilization_ratio_max) AS "busiest"',
                            )
                        )
                    ],
                    most=1,
                ),
                Panel(
                    "GPU memory",
                    "Memory in use and installed, all GPUs.",
                    "bytes",
                    [
                        sql(
                            _group(
                                "gpu_fleet_1m",
                                _total("memory_used_bytes", "used"),
                                _total("memory_total_bytes", "installed"),
                            )
                        )
                    ],
                ),
                Panel(
                    "Power",
                    "Power drawn by all GPUs.",
                    "watt",
                    [sql(_group("gpu_fleet_1m", _total("power_watts", "drawn")))],
                ),
                Panel(
                    "GPU temperature",
                    "Mean and hottest core.",
                    "celsius",
                    [
                        sql(
                            _group(
                                "gpu_fleet_1m",
                                _mean("temperature_celsius", "mean"),
                                'max(temperature_celsius_max) AS "hottest"',
                            )
                        )
                    ],
                ),
                Panel(
                    "Processors",
                    "Share of CPU time not idle: mean and busiest host.",
                    "percentunit",
                    [
                        sql(
                            _group(
                                "system_fleet_1m",
                                _mean("cpu_utilization_ratio", "mean"),
                                'max(cpu_utilization_ratio_max) AS "busiest"',
                            )
                        )
                    ],
                    most=1,
                ),
                Panel(
                    "Host memory",
                    "Memory in use and installed, all hosts.",
                    "bytes",
                    [
                        sql(
                            _group(
                                "system_fleet_1m",
                                _total("memory_used_bytes", "used"),
                                _total("memory_total_bytes", "installed"),
                            )
                        )
                    ],
                ),
            ],
        ),
        Row(
            "Trouble",
            [
                Panel(
                    "Silent, stalled or with a wrong clock",
                    "Workers that control names; a fleet that is well has none.",
                    "s",
                    [prom_table(_TROUBLE)],
                    "table",
                    12,
                ),
                Panel(
                    "Closest to their temperature limit",
                    "Degrees between a GPU and the temperature at which it slows itself down.",
                    "celsius",
                    [
                        prom(
                            "bottomk(10, (fleetpulse_agent_gpu_temperature_limit_celsius"
                            " - fleetpulse_agent_gpu_temperature_celsius) * on (job, instance) group_left (worker_id)"
                            " fleetpulse_agent_info)",
                            "{{worker_id}} {{hw_id}}",
                        )
                    ],
                    width=12,
                ),
                Panel(
                    "Workers",
                    "The newest heartbeat of each within the time shown; the longest queues first.",
                    "none",
                    [sql_table(_WORKERS)],
                    "table",
                    24,
                    12,
                ),
            ],
        ),
    ],
)
