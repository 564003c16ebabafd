"""Every metric of every service, asked of the code that serves it: for documents, alerts, dashboards and tests."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from agent.gpu_sources import NoGpus
from agent.http import ReadingsCollector
from agent.sampling import Latest
from agent.signals import Signals
from collector.metrics import CollectorMetrics
from control.database import Database
from control.jobs.framework.metrics import JobMetrics
from control.lifecycle.outbox import OutboxMetrics
from control.metrics import HeartbeatMetrics, HttpMetrics
from control.metrics import StateCollector as ControlState
from fleetpulse.settings import ControlSettings, DatabaseSettings, ProxySettings, StreamSettings, load
from fleetpulse.stream.consumer import StreamReader
from fleetpulse.stream.fleet_view import FleetView
from fleetpulse.stream.producer import StreamProducer
from proxy.access_reader import Access
from proxy.fleet import Fleet
from proxy.metrics import ProxyMetrics
from proxy.metrics import StateCollector as ProxyState
from proxy.relay.connection import Pool
from proxy.spool import Spool

# What a histogram's series are called beside the family.
_HISTOGRAM_PARTS: Final = ("_bucket", "_sum", "_count")
_UNITS: Final = {
    "timestamp_seconds": "Unix time in seconds",
    "seconds": "seconds",
    "bytes": "bytes",
    "ratio": "0 to 1",
    "celsius": "°C",
    "watts": "W",
    "joules": "J",
    "hertz": "Hz",
    "per_hour": "currency an hour",
}


@dataclass(frozen=True, slots=True)
class Family:
    """One metric as it is served. ``unit`` is what its name says, else it counts things."""

    service: str
    name: str
    kind: str
    unit: str
    labels: tuple[str, ...]
    text: str

    @property
    def series(self) -> tuple[str, ...]:
        """Names that queries use."""
        return tuple(self.name + part for part in _HISTOGRAM_PARTS) if self.kind == "histogram" else (self.name,)


def families() -> list[Family]:
    """All of them, by service and name. Nothing is started, and nothing connected."""
    return [
        family
        for service, registries in _registries().items()
        for family in sorted(_families(service, registries), key=lambda one: one.name)
    ]


def _registries() -> Mapping[str, Sequence[Collector]]:
    return {"agent": _agent(), "collector": _collector(), "control": _control(), "proxy": _proxy()}


def _agent() -> Sequence[Collector]:
    registry = _Kept()
    Signals(registry)
    registry.register(ReadingsCollector(Latest(), NoGpus()))
    return registry.kept


def _collector() -> Sequence[Collector]:
    return [one for one in vars(CollectorMetrics()).values() if isinstance(one, MetricWrapperBase)]


def _control() -> Sequence[Collector]:
    registry = _Kept()
    for part in (HttpMetrics, HeartbeatMetrics, JobMetrics, OutboxMetrics):
        part(registry)
    reader = StreamReader(load(StreamSettings), [], "catalogue")
    reader.lag_records = 0
    registry.register(ControlState(FleetView(), reader, Database(load(ControlSettings), load(DatabaseSettings))))
    return registry.kept


def _proxy() -> Sequence[Collector]:
    settings, registry = load(ProxySettings), _Kept()
    ProxyMetrics(registry)
    Spool(StreamProducer(load(StreamSettings), "catalogue"), settings.usage_records_kept, registry)
    pool = Pool(settings.engine_idle_seconds, settings.engine_connections_idle, settings.connect_timeout_seconds)
    fleet = Fleet(FleetView(), settings.engine_stalled_seconds)
    registry.register(ProxyState(fleet, StreamReader(load(StreamSettings), [], "catalogue"), Access(), pool))
    return registry.kept


class _Kept(CollectorRegistry):
    """A registry that says what was registered."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Collector] = []

    def register(self, collector: Collector) -> None:
        self.kept.append(collector)
        super().register(collector)


def _families(service: str, collectors: Iterable[Collector]) -> Iterable[Family]:
    for collector in collectors:
        describe = getattr(collector, "describe", collector.collect)
        for metric in describe():
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            yield Family(service, name, metric.type, unit(name), _labels(collector, metric), metric.documentation)


def _labels(collector: Collector, metric: Metric) -> tuple[str, ...]:
    # prometheus_client has no public way to ask for labels before there is a value.
    return tuple(vars(metric).get("_labelnames") or vars(collector).get("_labelnames", ()))


def unit(name: str) -> str:
    """The unit that a metric's name ends in."""
    stem = name.removesuffix("_total")
    return next((text for ending, text in _UNITS.items() if stem.endswith(f"_{ending}")), "count")
