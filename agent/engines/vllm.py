"""vLLM (V1, with the names of earlier releases)."""

from typing import Final

from agent.engines.adapter import Series, SeriesAdapter

ADAPTER: Final = SeriesAdapter(
    kind="vllm",
    # A data-parallel deployment has a series for each engine.
    index_label="engine",
    table=(
        Series("requests_running", ("vllm:num_requests_running",)),
        Series("requests_waiting", ("vllm:num_requests_waiting",)),
        # Called _perc, but 1 is full. Renamed in 0.9.
        Series("kv_cache_usage_ratio", ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"), "mean"),
        # A histogram with one observation a step. Without it, tokens done also stand still when the engine does.
        Series(
            "steps_total",
            (
                "vllm:iteration_tokens_total_count",
                ("vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
                ("vllm:prompt_tokens", "vllm:generation_tokens"),
            ),
        ),
        Series("prompt_tokens_total", ("vllm:prompt_tokens_total", "vllm:prompt_tokens")),
        Series("generation_tokens_total", ("vllm:generation_tokens_total", "vllm:generation_tokens")),
        Series("preemptions_total", ("vllm:num_preemptions_total", "vllm:num_preemptions")),
        Series(
            "prefix_cache_queries_total",
            (
                "vllm:prefix_cache_queries_total",
                "vllm:prefix_cache_queries",
                "vllm:gpu_prefix_cache_queries_total",
                "vllm:gpu_prefix_cache_queries",
            ),
        ),
        Series(
            "prefix_cache_hits_total",
            (
                "vllm:prefix_cache_hits_total",
                "vllm:prefix_cache_hits",
                "vllm:gpu_prefix_cache_hits_total",
                "vllm:gpu_prefix_cache_hits",
            ),
        ),
        # By finished_reason, aborted requests included.
        Series("requests_finished_total", ("vllm:request_success_total", "vllm:request_success")),
    ),
)
