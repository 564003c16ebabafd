"""Usage and cost: who asked for how much, what it cost, and what was paid for idle machines."""
# ruff: noqa: S608 - Grafana runs these queries, and all of each is written here

from typing import Final

from dashboards.model import Dashboard, Panel, Query, Row, prom, sql, sql_table

_HOURS: Final = "finops.inference_usage_1h"


def _by(named: str, value: str, join: str = "") -> Query:
    """By the hour, a series for each name."""
    return sql(
        f'SELECT $__timeGroup(u.bucket, $__interval) AS "time", {named} AS "metric", {value} AS "value"'
        f" FROM {_HOURS} AS u {join} WHERE $__timeFilter(u.bucket) GROUP BY 1, 2 ORDER BY 1"
    )


_ORGANIZATION: Final = "LEFT JOIN organizations AS o ON o.organization_id::text = u.organization_id"
_NAME: Final = "coalesce(o.slug, u.organization_id)"


def _sum(value: str, name: str) -> Query:
    return sql_table(f'SELECT {value} AS "{name}" FROM {_HOURS} AS u WHERE $__timeFilter(u.bucket)')


DASHBOARD: Final = Dashboard(
    "usage",
    "Usage and cost",
    "Requests, tokens and money by organisation, model and instance.",
    [
        Row(
            "In the time shown",
            [
                Panel(
                    "Requests",
                    "Attempts that reached an engine.",
                    "short",
                    [_sum("sum(u.total_requests)", "requests")],
                    "stat",
                    6,
                    4,
                ),
                Panel(
                    "Input tokens",
                    "As engines told them.",
                    "short",
                    [_sum("sum(u.input_tokens)", "tokens")],
                    "stat",
                    6,
                    4,
                ),
                Panel(
                    "Output tokens",
                    "As engines told them, or counted.",
                    "short",
                    [_sum("sum(u.output_tokens)", "tokens")],
                    "stat",
                    6,
                    4,
                ),
                Panel(
                    "Cost",
                    "Of requests whose instance has a price; all currencies as one number.",
                    "short",
                    [_sum("sum(u.cost)", "cost")],
                    "stat",
                    6,
                    4,
                ),
            ],
        ),
        Row(
            "By the hour",
            [
                Panel(
                    "Tokens by organisation",
                    "Input and output tokens together.",
                    "short",
                    [_by(_NAME, "sum(u.total_tokens)", _ORGANIZATION)],
                    stacked=True,
                ),
                Panel(
                    "Tokens by model",
                    "Input and output tokens together.",
                    "short",
                    [_by("u.model", "sum(u.total_tokens)")],
                    stacked=True,
                ),
                Panel(
                    "Requests by outcome",
                    "Attempts by how they ended.",
                    "short",
                    [
                        sql(
                            'SELECT $__timeGroup(u.bucket, $__interval) AS "time",'
                            ' sum(u.successful_requests) AS "completed", sum(u.refused_requests) AS "refused",'
                            ' sum(u.failed_requests) AS "failed", sum(u.broken_requests) AS "broken",'
                            ' sum(u.cancelled_requests) AS "cancelled"'
                            f" FROM {_HOURS} AS u WHERE $__timeFilter(u.bucket) GROUP BY 1 ORDER BY 1"
                        )
                    ],
                    stacked=True,
                ),
                Panel(
                    "Cost by organisation",
                    "In the currency of the instances' prices.",
                    "short",
                    [_by(_NAME, "sum(u.cost)", _ORGANIZATION)],
                    stacked=True,
                ),
                Panel(
                    "Cost by model",
                    "In the currency of the instances' prices.",
                    "short",
                    [_by("u.model", "sum(u.cost)")],
                    stacked=True,
                ),
                Panel(
                    "Cost of a million tokens",
                    "Cost of requests by the tokens that they read and made.",
                    "short",
                    [_by("u.model", "sum(u.cost) * 1000000 / nullif(sum(u.total_tokens), 0)")],
                ),
            ],
        ),
        Row(
            "Where it went",
            [
                Panel(
                    "Organisations and models",
                    "Of the time shown.",
                    "none",
                    [
                        sql_table(
                            f'SELECT {_NAME} AS "organisation", u.model, sum(u.total_requests) AS "requests",'
                            ' sum(u.input_tokens) AS "input tokens", sum(u.output_tokens) AS "output tokens",'
                            ' sum(u.cost) AS "cost", u.currency'
                            f" FROM {_HOURS} AS u {_ORGANIZATION} WHERE $__timeFilter(u.bucket)"
                            " GROUP BY 1, 2, u.currency ORDER BY 3 DESC LIMIT 200"
                        )
                    ],
                    "table",
                    12,
                ),
                Panel(
                    "Instances",
                    "What each had to do, and what it costs an hour.",
                    "none",
                    [
                        sql_table(
                            'SELECT m.instance_id AS "instance", i.instance_type AS "type",'
                            ' i.price_per_hour AS "price an hour", sum(m.total_requests) AS "requests",'
                            ' sum(m.total_tokens) AS "tokens", sum(m.busy_seconds) AS "busy seconds",'
                            ' sum(m.cost) AS "cost" FROM instance_request_metrics_1h AS m'
                            " LEFT JOIN instances AS i ON i.instance_id = m.instance_id"
                            " WHERE $__timeFilter(m.bucket) GROUP BY 1, 2, 3 ORDER BY 7 DESC NULLS LAST LIMIT 200"
                        )
                    ],
                    "table",
                    12,
                ),
                Panel(
                    "Slowest requests",
                    "The newest hundred of the time shown, the slowest first.",
                    "none",
                    [
                        sql_table(
                            'SELECT time AS "at", request_id AS "request", worker_id AS "worker", model, outcome,'
                            ' duration_seconds AS "seconds", first_token_seconds AS "first token",'
                            ' input_tokens AS "input", output_tokens AS "output" FROM ('
                            "SELECT * FROM finops.inference_usage WHERE $__timeFilter(time)"
                            " ORDER BY time DESC LIMIT 100) AS newest ORDER BY 6 DESC"
                        )
                    ],
                    "table",
                    24,
                ),
            ],
        ),
        Row(
            "Two books",
            [
                Panel(
                    "Ledger",
                    "Tokens by the proxy's records and by the engines' own counters.",
                    "short",
                    [
                        sql(
                            'SELECT $__timeGroup(window_start, $__interval) AS "time",'
                            ' sum(proxy_output_tokens) AS "output, proxy",'
                            ' sum(engine_output_tokens) AS "output, engine",'
                            ' sum(proxy_input_tokens) AS "input, proxy", sum(engine_input_tokens) AS "input, engine"'
                            " FROM finops.token_ledger WHERE status = 'known' AND $__timeFilter(window_start)"
                            " GROUP BY 1 ORDER BY 1"
                        )
                    ],
                    width=12,
                ),
                Panel(
                    "Gap",
                    "Share of engines' tokens that is in one book only.",
                    "percentunit",
                    [
                        prom(
                            "max by (direction) (abs(fleetpulse_collector_ledger_gap_ratio)) or vector(0)",
                            "{{direction}}",
                        )
                    ],
                    width=12,
                    bad=0.05,
                ),
            ],
        ),
    ],
    from_time="now-24h",
)
