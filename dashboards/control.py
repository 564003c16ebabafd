"""Control: its API, the lives of instances, its jobs and what machines cost for nothing."""

from typing import Final

from dashboards.model import Dashboard, Panel, Row, prom, sql_table

_R: Final = "[$__rate_interval]"

DASHBOARD: Final = Dashboard(
    "control",
    "Control",
    "The API, the lives of instances, jobs and providers.",
    [
        Row(
            "API",
            [
                Panel(
                    "Requests",
                    "Requests answered each second, by status.",
                    "reqps",
                    [prom(f"sum by (status) (rate(fleetpulse_control_http_requests_total{_R}))", "{{status}}")],
                    stacked=True,
                ),
                Panel(
                    "Errors",
                    "Share of requests answered with 5xx.",
                    "percentunit",
                    [
                        prom(
                            f'(sum(rate(fleetpulse_control_http_requests_total{{status=~"5.."}}{_R})) or vector(0))'
                            f" / sum(rate(fleetpulse_control_http_requests_total{_R}))",
                            "5xx",
                        )
                    ],
                    warn=0.001,
                    bad=0.01,
                ),
                Panel(
                    "Latency",
                    "Time from request to answer.",
                    "s",
                    [
                        prom(
                            f"histogram_quantile({share}, sum by (le)"
                            f" (rate(fleetpulse_control_http_request_duration_seconds_bucket{_R})))",
                            f"{share * 100:g} %",
                        )
                        for share in (0.5, 0.95, 0.99)
                    ],
                ),
                Panel(
                    "Saturation",
                    "Requests under way, and those that wait for a database connection.",
                    "short",
                    [
                        prom("sum(fleetpulse_control_http_requests_in_flight)", "under way"),
                        prom("sum(fleetpulse_control_database_pool_requests_waiting)", "waiting for the database"),
                    ],
                ),
                Panel(
                    "Database connections",
                    "Open and idle.",
                    "short",
                    [
                        prom("sum(fleetpulse_control_database_pool_size)", "open"),
                        prom("sum(fleetpulse_control_database_pool_available)", "idle"),
                    ],
                ),
                Panel(
                    "Heartbeats",
                    "Heartbeats read each second, and those not read yet.",
                    "short",
                    [
                        prom(
                            f"sum by (observation) (rate(fleetpulse_control_heartbeats_observed_total{_R}))",
                            "{{observation}}",
                        ),
                        prom("max(fleetpulse_control_stream_lag_records)", "not read yet"),
                    ],
                ),
            ],
        ),
        Row(
            "Instances",
            [
                Panel(
                    "Instances by state",
                    "Those that have not ended.",
                    "short",
                    [
                        sql_table(
                            'SELECT state, count(*) AS "instances", min(state_since) AS "since" FROM instances'
                            " WHERE state NOT IN ('terminated', 'archived') GROUP BY 1 ORDER BY 2 DESC"
                        )
                    ],
                    "table",
                ),
                Panel(
                    "Steps",
                    "The newest steps of the time shown.",
                    "none",
                    [
                        sql_table(
                            'SELECT at AS "at", instance_id AS "instance", from_state AS "from", to_state AS "to",'
                            " reason, actor FROM instance_transitions WHERE $__timeFilter(at)"
                            " ORDER BY 1 DESC LIMIT 100"
                        )
                    ],
                    "table",
                    16,
                ),
                Panel(
                    "Stuck",
                    "Instances in a state for longer than its limit.",
                    "short",
                    [prom("sum(fleetpulse_control_instances_stuck) or vector(0)", "stuck")],
                    warn=1,
                ),
                Panel(
                    "Suspects and old agents",
                    "Ready workers that are silent, and agents of another version.",
                    "short",
                    [
                        prom("max(fleetpulse_control_workers_suspect)", "suspect"),
                        prom("max(fleetpulse_control_agents_outdated)", "outdated"),
                    ],
                    warn=1,
                ),
                Panel(
                    "Lifecycle messages",
                    "Published each second, and waiting.",
                    "short",
                    [
                        prom(f"sum(rate(fleetpulse_control_lifecycle_messages_published_total{_R}))", "published"),
                        prom("max(fleetpulse_control_lifecycle_outbox_messages)", "waiting"),
                    ],
                ),
            ],
        ),
        Row(
            "Jobs",
            [
                Panel(
                    "Outcomes",
                    "What came of items, each second.",
                    "short",
                    [
                        prom(
                            f"sum by (exported_job, outcome) (rate(fleetpulse_control_job_outcomes_total{_R}))",
                            "{{exported_job}} {{outcome}}",
                        )
                    ],
                ),
                Panel(
                    "Work on an item",
                    "95 of 100, by job.",
                    "s",
                    [
                        prom(
                            f"histogram_quantile(0.95, sum by (le, exported_job)"
                            f" (rate(fleetpulse_control_job_duration_seconds_bucket{_R})))",
                            "{{exported_job}}",
                        )
                    ],
                ),
                Panel(
                    "Oldest due",
                    "Age of the oldest work that nobody has claimed.",
                    "s",
                    [prom("max by (exported_job) (fleetpulse_control_job_oldest_due_seconds)", "{{exported_job}}")],
                    warn=30,
                    bad=120,
                ),
                Panel(
                    "Late",
                    "How long work was due when it was claimed, 95 of 100.",
                    "s",
                    [
                        prom(
                            f"histogram_quantile(0.95, sum by (le, exported_job)"
                            f" (rate(fleetpulse_control_job_lateness_seconds_bucket{_R})))",
                            "{{exported_job}}",
                        )
                    ],
                ),
                Panel(
                    "Holding still",
                    "Jobs that do nothing destructive now.",
                    "short",
                    [prom("sum(fleetpulse_control_jobs_holding_still) or vector(0)", "jobs")],
                    warn=1,
                ),
                Panel(
                    "Leases that expired",
                    "Items whose process died or froze over them.",
                    "short",
                    [
                        prom(f"sum(increase(fleetpulse_control_job_leases_expired_total{_R}))", "expired"),
                        prom(f"sum(increase(fleetpulse_control_job_circuits_opened_total{_R}))", "left alone"),
                    ],
                ),
            ],
        ),
        Row(
            "Providers and money",
            [
                Panel(
                    "Calls",
                    "Calls of providers each second.",
                    "reqps",
                    [
                        prom(
                            f"sum by (provider, call, outcome) (rate(fleetpulse_control_provider_calls_total{_R}))",
                            "{{provider}} {{call}} {{outcome}}",
                        )
                    ],
                ),
                Panel(
                    "Orphans",
                    "Machines that no active instance owns.",
                    "short",
                    [
                        prom("sum(fleetpulse_control_orphan_machines) or vector(0)", "machines"),
                        prom("sum(fleetpulse_control_orphan_volumes) or vector(0)", "volumes"),
                    ],
                    warn=1,
                ),
                Panel(
                    "Orphans' price",
                    "What they cost an hour, as far as prices are known.",
                    "short",
                    [prom("sum by (currency) (fleetpulse_control_orphan_price_per_hour) or vector(0)", "{{currency}}")],
                ),
                Panel(
                    "Orphan machines",
                    "Those that are still there.",
                    "none",
                    [
                        sql_table(
                            'SELECT provider, zone, machine_id AS "machine", instance_type AS "type",'
                            ' price_per_hour AS "price an hour", currency, first_seen_at AS "since"'
                            " FROM orphan_machines WHERE resolved_at IS NULL ORDER BY 7"
                        )
                    ],
                    "table",
                    12,
                ),
                Panel(
                    "Actions that failed",
                    "The newest of the time shown.",
                    "none",
                    [
                        sql_table(
                            'SELECT at AS "at", action, instance_id AS "instance", provider, actor, detail::text'
                            " FROM action_log WHERE NOT succeeded AND $__timeFilter(at) ORDER BY 1 DESC LIMIT 100"
                        )
                    ],
                    "table",
                    12,
                ),
            ],
        ),
    ],
)
