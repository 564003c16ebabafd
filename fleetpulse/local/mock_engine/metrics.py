"""The metrics of vLLM's v1 engine that fleetpulse and common dashboards read, under their real names."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LABELS: Final = ("model_name", "engine")
# vLLM's own bounds.
_ITERATION_TOKENS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_FIRST_TOKEN_SECONDS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80),
    *(160, 640, 2560),
)
_REQUEST_SECONDS: Final = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680),
)


class EngineMetrics:
    """One engine's metrics; each method is one thing that happens in it."""

    def __init__(self, registry: CollectorRegistry, model: str, engine_index: str = "0") -> None:
        values = (model, engine_index)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, _LABELS, registry=registry).labels(*values)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, _LABELS, registry=registry).labels(*values)

        def histogram(name: str, text: str, bounds: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm:{name}", text, _LABELS, registry=registry, buckets=bounds).labels(*values)

        self._running = gauge("num_requests_running", "Number of requests in model execution batches.")
        self._waiting = gauge("num_requests_waiting", "Number of requests waiting to be processed.")
        self._kv_cache = gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.")
        self._prompt_tokens = counter("prompt_tokens", "Number of prefill tokens processed.")
        self._generation_tokens = counter("generation_tokens", "Number of generation tokens processed.")
        self._preemptions = counter("num_preemptions", "Cumulative number of preemptions from the engine.")
        self._prefix_queries = counter("prefix_cache_queries", "Prefix cache queries, in tokens.")
        self._prefix_hits = counter("prefix_cache_hits", "Prefix cache hits, in tokens.")
        self._iteration_tokens = histogram(
            "iteration_tokens_total", "Histogram of number of tokens per engine_step.", _ITERATION_TOKENS
        )
        self._first_token = histogram("time_to_first_token_seconds", "Time to first token.", _FIRST_TOKEN_SECONDS)
        self._queued = histogram("request_queue_time_seconds", "Time spent in WAITING phase.", _REQUEST_SECONDS)
        self._latency = histogram("e2e_request_latency_seconds", "End to end request latency.", _REQUEST_SECONDS)
        finished = Counter(
            "vllm:request_success",
            "Count of successfully processed requests.",
            (*_LABELS, "finished_reason"),
            registry=registry,
        )
        self._finished = {reason: finished.labels(*values, reason) for reason in ("stop", "length", "abort")}

    def load(self, running: int, waiting: int, kv_cache_ratio: float) -> None:
        """The state after a step."""
        self._running.set(running)
        self._waiting.set(waiting)
        self._kv_cache.set(min(1.0, kv_cache_ratio))

    def stepped(self, tokens: int, generated: int) -> None:
        """A step in which that many tokens were worked on, and that many of them generated."""
        self._iteration_tokens.observe(tokens)
        self._generation_tokens.inc(generated)

    def admitted(self, prompt_tokens: int, prefix_hits: int, waited_seconds: float) -> None:
        """A request left the queue."""
        self._prompt_tokens.inc(prompt_tokens)
        self._prefix_queries.inc(prompt_tokens)
        self._prefix_hits.inc(prefix_hits)
        self._queued.observe(waited_seconds)

    def first_token(self, after_seconds: float) -> None:
        """A request got its first token."""
        self._first_token.observe(after_seconds)

    def finished(self, reason: str, after_seconds: float) -> None:
        """A request ended, for one of vLLM's reasons."""
        self._finished[reason].inc()
        self._latency.observe(after_seconds)
