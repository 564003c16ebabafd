"""The topics of the health stream and how each is kept."""

from dataclasses import dataclass
from typing import Final

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS


@dataclass(frozen=True, slots=True)
class Topic:
    """A Kafka topic: its name, why it exists, and its broker-side settings."""

    name: str
    purpose: str
    retention_ms: int
    cleanup_policy: str = "delete"

    def settings(self) -> dict[str, str]:
        """Topic configuration in the broker's own names."""
        kept = {"retention.ms": str(self.retention_ms)} if self.cleanup_policy == "delete" else {}
        return {"cleanup.policy": self.cleanup_policy} | kept


# Name, encoding (`otlp_proto`) and the opaque key are the stock OpenTelemetry Collector's kafka exporter defaults.
METRICS: Final = Topic("otlp_metrics", "OTLP ExportMetricsServiceRequest from agents and other collectors", 3 * DAY_MS)
HEARTBEATS: Final = Topic("fleetpulse.heartbeats", "JSON heartbeats of agents", 6 * HOUR_MS)
LIFECYCLE: Final = Topic("fleetpulse.lifecycle", "Instances as control sees them", 0, "compact")
USAGE: Final = Topic("fleetpulse.usage", "JSON usage records of the proxy", 7 * DAY_MS)
DEADLETTER: Final = Topic("fleetpulse.deadletter", "Refused messages as they came, reason in the headers", 30 * DAY_MS)

ALL: Final = (METRICS, HEARTBEATS, LIFECYCLE, USAGE, DEADLETTER)
