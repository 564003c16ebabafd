"""The agent's own golden signals, for its /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from agent.identity import WorkerIdentity
from agent.transport import KINDS


class Signals:
    """Counters and gauges in a registry of the caller's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"fleetpulse_agent_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"fleetpulse_agent_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"fleetpulse_agent_{name}", text, labels, buckets=buckets, registry=registry)

        self.info = gauge("info", "1; who this agent is", ("worker_id", "instance_id", "host_name", "version"))
        self.samples = counter("samples_total", "Samples taken")
        self.sample_failures = counter("source_failures_total", "Sources that gave no reading", ("source",))
        self.sample_seconds = histogram(
            "sample_seconds", "Time to take a sample", (), (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
        )
        self.heartbeats = counter("heartbeats_total", "Heartbeats made")
        self.engine_polls = counter("engine_polls_total", "Times the engine was asked, by its state", ("state",))
        self.sent = counter("messages_sent_total", "Messages that arrived", ("kind",))
        self.failed = counter("deliveries_failed_total", "Batches that did not arrive and were kept", ("kind",))
        self.refused = counter("messages_refused_total", "Messages the collector refused for good", ("kind",))
        self.delivery_seconds = histogram(
            "delivery_seconds", "From sending to acknowledgement", ("kind",), (0.005, 0.01, 0.025, 0.05, 0.1, 1.0, 10.0)
        )
        self.otlp_failures = counter("otlp_failures_total", "Samples that the extra OTLP endpoint did not take")
        self.spool_bytes = gauge("spool_bytes", "Size of the spool", ("kind",))
        self.spool_messages = gauge("spool_messages", "Messages in the spool", ("kind",))
        self.spool_dropped = counter(
            "spool_dropped_total", "Messages lost: spool full, or no disk to take them", ("kind",)
        )
        for kind in KINDS:
            for series in (self.sent, self.failed, self.refused, self.spool_dropped, self.delivery_seconds):
                series.labels(kind)
            for level in (self.spool_bytes, self.spool_messages):
                level.labels(kind)

    def identify(self, identity: WorkerIdentity) -> None:
        """Show who this is, so that every other series of this agent can be joined with its worker."""
        self.info.labels(identity.worker_id, identity.instance_id, identity.host_name, identity.agent_version).set(1)
