"""The collector's own metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Fine around the promise of 100 ms.
LATENCY_BUCKETS = (
    *(0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.3, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
WRITE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class CollectorMetrics:
    """Counted when a transaction is committed, so that what is read again after an error is not counted twice."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        prefix = "fleetpulse_collector_"
        self.messages = self._counter(f"{prefix}messages", "Messages whose content is committed", "topic")
        self.message_bytes = self._counter(f"{prefix}message_bytes", "Bytes of messages committed", "topic")
        self.rows = self._counter(f"{prefix}rows", "Rows committed", "relation")
        self.data_quality = self._counter(f"{prefix}data_quality", "Faulty data points and messages", "kind", "reason")
        self.corrections = self._counter(
            f"{prefix}corrections", "Values clamped or rejected", "relation", "column", "verdict", "reason"
        )
        self.dead_letters = self._counter(f"{prefix}dead_letters", "Messages sent to the dead-letter topic", "reason")
        self.write_failures = self._counter(f"{prefix}write_failures", "Transactions that did not commit", "reason")
        self.stream_failures = self._counter(f"{prefix}stream_failures", "Times the stream had to be reconnected")
        self.gaps = self._counter(f"{prefix}offset_gaps", "Ranges of offsets that could not be read", "reason")
        self.door_requests = self._counter(f"{prefix}door_requests", "Requests at the HTTP door", "route", "status")
        self.door_seconds = Histogram(
            f"{prefix}door_request_duration_seconds",
            "Time from a request at the HTTP door to its answer",
            ["route"],
            registry=self.registry,
            buckets=WRITE_BUCKETS,
        )
        self.usage_duplicates = self._counter(
            f"{prefix}usage_duplicates", "Usage records that came again and were there already"
        )
        self.ledger_workers = Gauge(
            f"{prefix}ledger_workers",
            "Workers in the token ledger's newest window, by whether both sides are known",
            ["status"],
            registry=self.registry,
        )
        self.ledger_gap = Gauge(
            f"{prefix}ledger_gap_tokens",
            "Tokens that engines counted and the proxy's records did not, in the ledger's newest window",
            ["direction"],
            registry=self.registry,
        )
        self.ledger_gap_ratio = Gauge(
            f"{prefix}ledger_gap_ratio",
            "Gaps of workers that the proxy knows all tokens of, as a share of their engines' tokens",
            ["direction"],
            registry=self.registry,
        )
        self.upkeep_failures = self._counter(
            f"{prefix}upkeep_failures", "Rollup or partition passes that failed", "work"
        )
        self.upkeep_seconds = Histogram(
            f"{prefix}upkeep_duration_seconds",
            "Time of a pass",
            ["work"],
            registry=self.registry,
            buckets=WRITE_BUCKETS,
        )
        self.upkeep_success = Gauge(
            f"{prefix}upkeep_last_success_timestamp_seconds",
            "When a pass last succeeded",
            ["work"],
            registry=self.registry,
        )
        self.policies_failing = Gauge(
            f"{prefix}policies_failing",
            "Background jobs of TimescaleDB whose last run failed",
            registry=self.registry,
        )
        self.write_seconds = self._histogram(
            f"{prefix}write_duration_seconds", "Time of a committed transaction", WRITE_BUCKETS
        )
        self.heartbeat_commit_seconds = self._histogram(
            f"{prefix}heartbeat_commit_seconds", "From a heartbeat's sending to its commit", LATENCY_BUCKETS
        )
        self.lag = Gauge(
            f"{prefix}lag_messages", "Messages in the stream and not yet read", ["topic"], registry=self.registry
        )
        self.partitions = Gauge(f"{prefix}partitions", "Partitions owned", registry=self.registry)
        self.recognised = self._counter(f"{prefix}resources_recognised", "Metric resources read by a template")
        self.walked = self._counter(f"{prefix}resources_walked", "Metric resources read point by point")
        self.last_commit = Gauge(
            f"{prefix}last_commit_timestamp_seconds", "When rows were last committed", registry=self.registry
        )
        self.workers = Gauge(
            f"{prefix}workers", "Workers heard in this collector's partitions", ["state"], registry=self.registry
        )
        self.mass_silence = Gauge(
            f"{prefix}mass_silence", "1 while many workers are silent together", registry=self.registry
        )
        self.heartbeat_age = Gauge(
            f"{prefix}stale_worker_heartbeat_age_seconds",
            "Age of the last heartbeat of workers that are stale",
            ["worker_id", "instance_id"],
            registry=self.registry,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, registry=self.registry, buckets=buckets)
