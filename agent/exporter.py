"""Measurements to OTLP: one message a sample, cumulative, whose bytes differ from the last one's only in values.

Built of opentelemetry-sdk's data points; `agent.encoder` makes bytes of them. The SDK's instruments are not used: they
would aggregate what psutil, NVML and the engine have aggregated already.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from agent import instruments
from agent.instruments import Instrument, Measurement, Since

# The release of the semantic conventions that the names are from.
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
_ORDER: Final = {instrument: place for place, instrument in enumerate(instruments.ALL)}


class Exporter:
    """Makes an agent's metrics messages. ``host_boot_unix_nano`` and ``agent_start_unix_nano`` date the counters."""

    def __init__(
        self, resource: Mapping[str, str], version: str, host_boot_unix_nano: int, agent_start_unix_nano: int
    ) -> None:
        self._resource = Resource(resource, SCHEMA_URL)
        self._scope = InstrumentationScope("fleetpulse.agent", version)
        self._since: dict[Since, int] = {
            "never": 0,
            "host boot": host_boot_unix_nano,
            "agent start": agent_start_unix_nano,
        }
        self.exported = 0

    def build(self, measurements: Iterable[Measurement], time_unix_nano: int) -> MetricsData:
        """The next message. Its sequence number is a measurement in it, one more than the last message's."""
        self.exported += 1
        by_instrument: dict[Instrument, list[Measurement]] = {}
        for measurement in (Measurement(instruments.EXPORTS, {}, self.exported), *measurements):
            by_instrument.setdefault(measurement.instrument, []).append(measurement)
        metrics = [
            self._metric(instrument, by_instrument[instrument], time_unix_nano)
            for instrument in sorted(by_instrument, key=_ORDER.__getitem__)
        ]
        scope = ScopeMetrics(self._scope, metrics, SCHEMA_URL)
        return MetricsData([ResourceMetrics(self._resource, [scope], SCHEMA_URL)])

    def _metric(self, instrument: Instrument, measurements: list[Measurement], time_unix_nano: int) -> Metric:
        start = self._since[instrument.since]
        points = [
            NumberDataPoint(
                attributes=measurement.attributes,
                start_time_unix_nano=start,
                time_unix_nano=time_unix_nano,
                value=int(measurement.value) if instrument.integer else float(measurement.value),
            )
            for measurement in measurements
        ]
        data: Gauge | Sum
        if instrument.kind == "gauge":
            data = Gauge(points)
        else:
            data = Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=instrument.kind == "counter")
        # Descriptions would be half of every message; docs/agent.md has them.
        return Metric(instrument.name, "", instrument.unit, data)
