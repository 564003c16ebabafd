"""llama.cpp's server, started with --metrics. It serves one model and names none in its series."""

from typing import Final

from agent.engines.adapter import Series, SeriesAdapter

ADAPTER: Final = SeriesAdapter(
    kind="llamacpp",
    table=(
        Series("requests_running", ("llamacpp:requests_processing",)),
        Series("requests_waiting", ("llamacpp:requests_deferred",)),
        # Gone from builds of 2025 and later.
        Series("kv_cache_usage_ratio", ("llamacpp:kv_cache_usage_ratio",), "mean"),
        Series("steps_total", ("llamacpp:n_decode_total",)),
        # The first leaves out what was in the cache, which answers count in their usage; older builds have it alone.
        Series("prompt_tokens_total", (("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),)),
        Series("generation_tokens_total", ("llamacpp:tokens_predicted_total",)),
        Series("prefix_cache_hits_total", ("llamacpp:prompt_tokens_cached_total",)),
    ),
)
