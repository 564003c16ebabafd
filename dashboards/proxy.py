"""The proxy: its objectives, and the four golden signals by model."""

from typing import Final

from dashboards.model import Dashboard, Panel, Query, Row, Variable, prom

_R: Final = "[$__rate_interval]"
_MODEL: Final = 'model=~"$model"'
_GEN_AI: Final = 'gen_ai_request_model=~"$model"'
_WINDOWS: Final = ("1h", "6h", "3d")


def _quantiles(metric: str) -> list[Query]:
    return [
        prom(f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{{{_GEN_AI}}}{_R})))", f"{share * 100:g} %")
        for share in (0.5, 0.95, 0.99)
    ]


def _burn(name: str, budget: float) -> list[Query]:
    """1 is the pace that uses up the budget in exactly 30 days."""
    return [prom(f"(fleetpulse:proxy_{name}:ratio_rate{window}) / {budget:g}", window) for window in _WINDOWS]


DASHBOARD: Final = Dashboard(
    "proxy",
    "Proxy",
    "Objectives and golden signals of the OpenAI API.",
    [
        Row(
            "Objectives",
            [
                Panel(
                    "Answered to the end",
                    "Share of requests over 3 days; the objective is 99.9 %.",
                    "percentunit",
                    [prom("1 - fleetpulse:proxy_availability_errors:ratio_rate3d")],
                    "stat",
                    4,
                ),
                Panel(
                    "Availability budget burnt",
                    "Times the pace that the objective allows; 14.4 over 1 h and 6 over 6 h page.",
                    "short",
                    _burn("availability_errors", 0.001),
                    width=8,
                    warn=1,
                    bad=6,
                ),
                Panel(
                    "First token in time",
                    "Share of streams within 2.5 s over 3 days; the objective is 99 %.",
                    "percentunit",
                    [prom("1 - fleetpulse:proxy_first_token_slow:ratio_rate3d")],
                    "stat",
                    4,
                ),
                Panel(
                    "First-token budget burnt",
                    "Times the pace that the objective allows; 14.4 over 1 h and 6 over 6 h page.",
                    "short",
                    _burn("first_token_slow", 0.01),
                    width=8,
                    warn=1,
                    bad=6,
                ),
            ],
        ),
        Row(
            "Traffic and errors",
            [
                Panel(
                    "Requests",
                    "Requests that ended each second, by how; of a stream that is known at its end.",
                    "reqps",
                    [
                        prom(
                            f'sum by (outcome) (rate(fleetpulse_proxy_requests_total{{model=~"$model|"}}{_R}))',
                            "{{outcome}}",
                        )
                    ],
                    stacked=True,
                ),
                Panel(
                    "By model",
                    "Requests that ended each second.",
                    "reqps",
                    [prom(f"sum by (model) (rate(fleetpulse_proxy_requests_total{{{_MODEL}}}{_R}))", "{{model}}")],
                ),
                Panel(
                    "Tokens",
                    "Tokens read and made each second, as far as they are known.",
                    "short",
                    [
                        prom(
                            f"sum by (direction) (rate(fleetpulse_proxy_tokens_total{{{_MODEL}}}{_R}))", "{{direction}}"
                        )
                    ],
                ),
                Panel(
                    "Errors",
                    "Share of requests that failed or broke off.",
                    "percentunit",
                    [
                        prom(
                            f'(sum(rate(fleetpulse_proxy_requests_total{{outcome=~"failed|broken"}}{_R})) or vector(0))'
                            f" / sum(rate(fleetpulse_proxy_requests_total{_R}))",
                            "failed or broken",
                        )
                    ],
                    warn=0.001,
                    bad=0.01,
                ),
                Panel(
                    "Statuses",
                    "Requests that ended each second, 4xx and 5xx apart.",
                    "reqps",
                    [prom(f"sum by (status) (rate(fleetpulse_proxy_requests_total{_R}))", "{{status}}")],
                ),
                Panel(
                    "Attempts",
                    "Attempts at workers each second, and workers taken off the route.",
                    "short",
                    [
                        prom(f"sum by (outcome) (rate(fleetpulse_proxy_attempts_total{_R}))", "{{outcome}}"),
                        prom(f"sum(rate(fleetpulse_proxy_ejections_total{_R}))", "ejections"),
                    ],
                ),
            ],
        ),
        Row(
            "Latency",
            [
                Panel(
                    "First token",
                    "Time to the first event of streams that ended well.",
                    "s",
                    _quantiles("gen_ai_server_time_to_first_token_seconds"),
                    bad=2.5,
                ),
                Panel(
                    "Each further token",
                    "Time for each token after the first.",
                    "s",
                    _quantiles("gen_ai_server_time_per_output_token_seconds"),
                ),
                Panel(
                    "Whole answer",
                    "Time to the end of an answer; it depends on the length above all.",
                    "s",
                    _quantiles("gen_ai_server_request_duration_seconds"),
                ),
            ],
        ),
        Row(
            "Saturation",
            [
                Panel(
                    "Under way",
                    "Requests in the proxy, and waiting in the engines.",
                    "short",
                    [
                        prom("sum(fleetpulse_proxy_requests_in_flight)", "in the proxy"),
                        prom("max(fleetpulse_proxy_engine_requests_waiting)", "waiting in engines"),
                    ],
                ),
                Panel(
                    "Workers",
                    "Workers by what is true of them.",
                    "short",
                    [prom("max by (are) (fleetpulse_proxy_workers)", "{{are}}")],
                ),
                Panel(
                    "Workers by model",
                    "Workers that take requests.",
                    "short",
                    [prom(f"max by (model) (fleetpulse_proxy_model_workers{{{_MODEL}}})", "{{model}}")],
                ),
                Panel(
                    "Usage records",
                    "Sent each second, waiting and lost.",
                    "short",
                    [
                        prom(f"sum(rate(fleetpulse_proxy_usage_records_sent_total{_R}))", "sent"),
                        prom("sum(fleetpulse_proxy_usage_records_waiting)", "waiting"),
                        prom(f"sum(increase(fleetpulse_proxy_usage_records_dropped_total{_R}))", "lost"),
                    ],
                ),
                Panel(
                    "Keys and models",
                    "Time since they were read.",
                    "s",
                    [prom("max(fleetpulse_proxy_access_age_seconds)", "age")],
                    warn=60,
                ),
                Panel(
                    "Connections to engines",
                    "Kept open.",
                    "short",
                    [prom("sum(fleetpulse_proxy_engine_connections_idle)", "idle")],
                ),
            ],
        ),
    ],
    [Variable("model", "Model", "label_values(fleetpulse_proxy_model_workers, model)", is_sql=False, several=True)],
)
