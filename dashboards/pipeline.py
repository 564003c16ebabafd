"""From message to row: traffic, delay, saturation and failures of the pipeline."""

from typing import Final

from dashboards.model import Dashboard, Panel, Query, Row, prom, prom_table, sql, sql_table

_R: Final = "[$__rate_interval]"


def _rate(metric: str, by: str, legend: str = "") -> list[Query]:
    return [prom(f"sum by ({by}) (rate({metric}{_R}))", legend or f"{{{{{by}}}}}")]


def _quantiles(metric: str) -> list[Query]:
    return [
        prom(f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{_R})))", f"{share * 100:g} %")
        for share in (0.5, 0.95, 0.99)
    ]


DASHBOARD: Final = Dashboard(
    "pipeline",
    "Pipeline",
    "The way of a measurement from the stream into the database.",
    [
        Row(
            "Now",
            [
                Panel(
                    "Last commit",
                    "Time since rows were last committed.",
                    "s",
                    [prom("time() - max(fleetpulse_collector_last_commit_timestamp_seconds)")],
                    "stat",
                    4,
                    4,
                    warn=10,
                    bad=60,
                ),
                Panel(
                    "Lag",
                    "Messages that collectors have not read yet.",
                    "short",
                    [prom("sum(fleetpulse_collector_lag_messages)")],
                    "stat",
                    4,
                    4,
                ),
                Panel(
                    "Partitions",
                    "Partitions that collectors own.",
                    "short",
                    [prom("sum(fleetpulse_collector_partitions)")],
                    "stat",
                    4,
                    4,
                ),
                Panel(
                    "Heartbeat to row",
                    "95 of 100 heartbeats are in the database within this time.",
                    "s",
                    [
                        prom(
                            f"histogram_quantile(0.95, sum by (le) (rate(fleetpulse_collector_heartbeat_commit_seconds"
                            f"_bucket{_R})))"
                        )
                    ],
                    "stat",
                    4,
                    4,
                    warn=0.1,
                    bad=1,
                ),
                Panel(
                    "Control hears",
                    "1 while every control process follows the heartbeats.",
                    "short",
                    [prom("min(fleetpulse_control_stream_connected)")],
                    "stat",
                    4,
                    4,
                ),
                Panel(
                    "Proxy hears",
                    "1 while every proxy process follows the stream.",
                    "short",
                    [prom("min(fleetpulse_proxy_stream_connected)")],
                    "stat",
                    4,
                    4,
                ),
            ],
        ),
        Row(
            "Traffic and delay",
            [
                Panel(
                    "Messages",
                    "Messages whose content is committed, each second.",
                    "short",
                    _rate("fleetpulse_collector_messages_total", "topic"),
                ),
                Panel(
                    "Rows", "Rows committed each second.", "short", _rate("fleetpulse_collector_rows_total", "relation")
                ),
                Panel(
                    "Bytes",
                    "Bytes of messages committed each second.",
                    "Bps",
                    _rate("fleetpulse_collector_message_bytes_total", "topic"),
                ),
                Panel(
                    "Heartbeat to row",
                    "From a heartbeat's making, by the worker's clock, to its commit.",
                    "s",
                    _quantiles("fleetpulse_collector_heartbeat_commit_seconds"),
                ),
                Panel(
                    "Transactions",
                    "Time of a committed transaction.",
                    "s",
                    _quantiles("fleetpulse_collector_write_duration_seconds"),
                ),
                Panel(
                    "Lag",
                    "Messages not read yet.",
                    "short",
                    [prom("sum by (topic) (fleetpulse_collector_lag_messages)", "{{topic}}")],
                ),
            ],
        ),
        Row(
            "Failures",
            [
                Panel(
                    "Transactions that failed",
                    "Each is tried again.",
                    "short",
                    [
                        prom(f"sum(rate(fleetpulse_collector_write_failures_total{_R})) or vector(0)", "failed"),
                        prom(f"sum(rate(fleetpulse_collector_stream_failures_total{_R}))", "broker lost"),
                    ],
                ),
                Panel(
                    "Faulty data",
                    "Data points that were clamped, rejected, late or duplicate, each second.",
                    "short",
                    [prom(f"sum(rate(fleetpulse_collector_data_quality_total{_R})) or vector(0)", "all kinds")],
                ),
                Panel(
                    "Dead letters",
                    "Messages put aside.",
                    "short",
                    [
                        prom(
                            f"sum by (reason) (increase(fleetpulse_collector_dead_letters_total{_R}))",
                            "{{reason}}",
                        )
                    ],
                ),
                Panel(
                    "Faulty data by worker",
                    "The most of the time shown, by the hour.",
                    "none",
                    [
                        sql_table(
                            'SELECT w.worker_id AS "worker", q.kind, q.reason, sum(q.count) AS "count"'
                            " FROM data_quality AS q JOIN workers AS w USING (worker_key)"
                            " WHERE $__timeFilter(q.hour) GROUP BY 1, 2, 3 ORDER BY 4 DESC LIMIT 50"
                        )
                    ],
                    "table",
                    12,
                ),
                Panel(
                    "Gaps",
                    "Offsets that were gone before they were read.",
                    "none",
                    [
                        sql_table(
                            'SELECT noticed_at AS "noticed", topic, partition, from_offset AS "from",'
                            ' to_offset AS "to", reason FROM ingest_gaps WHERE $__timeFilter(noticed_at)'
                            " ORDER BY 1 DESC LIMIT 50"
                        )
                    ],
                    "table",
                    12,
                ),
            ],
        ),
        Row(
            "Upkeep",
            [
                Panel(
                    "Rollups",
                    "Time since the finest rollups were last made.",
                    "s",
                    [
                        prom(
                            "time() - max(fleetpulse_collector_upkeep_last_success_timestamp_seconds"
                            '{work="rollup_minutes"})',
                            "minutes",
                        )
                    ],
                    warn=120,
                    bad=600,
                ),
                Panel(
                    "Passes",
                    "Time of a pass of upkeep, 95 of 100.",
                    "s",
                    [
                        prom(
                            f"histogram_quantile(0.95, sum by (le, work)"
                            f" (rate(fleetpulse_collector_upkeep_duration_seconds_bucket{_R})))",
                            "{{work}}",
                        )
                    ],
                ),
                Panel(
                    "Failed upkeep",
                    "Passes that failed, and TimescaleDB's jobs whose last run did.",
                    "short",
                    [
                        prom(f"sum(increase(fleetpulse_collector_upkeep_failures_total{_R})) or vector(0)", "passes"),
                        prom("max(fleetpulse_collector_policies_failing)", "policies"),
                    ],
                ),
                Panel(
                    "Partitions",
                    "Where each partition of the stream is, and who reads it.",
                    "none",
                    [
                        sql_table(
                            'SELECT topic, partition, next_offset AS "next offset", owner,'
                            ' updated_at AS "updated" FROM ingest_offsets ORDER BY 1, 2'
                        )
                    ],
                    "table",
                    16,
                ),
                Panel(
                    "Heartbeats stored",
                    "Heartbeats stored each minute.",
                    "short",
                    [
                        sql(
                            'SELECT $__timeGroup(time, $__interval) AS "time", count(*) AS "heartbeats" FROM heartbeats'
                            " WHERE $__timeFilter(time) GROUP BY 1 ORDER BY 1"
                        )
                    ],
                ),
            ],
        ),
        Row(
            "Processes",
            [
                Panel(
                    "Processes",
                    "1 for each process that Prometheus reaches.",
                    "none",
                    [prom_table('up{job=~"fleetpulse-.+"}')],
                    "table",
                    12,
                ),
                Panel(
                    "Messages read by template",
                    "Share of metric messages read without a walk.",
                    "percentunit",
                    [
                        prom(
                            f"sum(rate(fleetpulse_collector_resources_recognised_total{_R}))"
                            f" / (sum(rate(fleetpulse_collector_resources_recognised_total{_R}))"
                            f" + sum(rate(fleetpulse_collector_resources_walked_total{_R})))",
                            "recognised",
                        )
                    ],
                    width=12,
                    most=1,
                ),
            ],
        ),
    ],
)
