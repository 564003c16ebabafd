"""SGLang, started with --enable-metrics."""

from typing import Final

from agent.engines.adapter import Series, SeriesAdapter

ADAPTER: Final = SeriesAdapter(
    kind="sglang",
    # Data-parallel ranks are engines of their own; tensor-parallel ranks each tell of the same requests.
    index_label="dp_rank",
    table=(
        Series("requests_running", ("sglang:num_running_reqs",), "maximum"),
        Series("requests_waiting", ("sglang:num_queue_reqs",), "maximum"),
        Series("kv_cache_usage_ratio", ("sglang:token_usage",), "maximum"),
        # By mode (prefill, decode). Tokens grow with each step, so they stand still when the engine does.
        Series(
            "steps_total",
            ("sglang:realtime_tokens_total", ("sglang:prompt_tokens_total", "sglang:generation_tokens_total")),
        ),
        Series("prompt_tokens_total", ("sglang:prompt_tokens_total",)),
        Series("generation_tokens_total", ("sglang:generation_tokens_total",)),
        Series("preemptions_total", ("sglang:num_retracted_requests_total",)),
        Series("prefix_cache_hits_total", ("sglang:cached_tokens_total",)),
        Series("requests_finished_total", ("sglang:num_requests_total",)),
    ),
)
