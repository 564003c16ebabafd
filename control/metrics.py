"""Control's own metrics."""

import time
from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from control.database import Database
from fleetpulse.stream.consumer import StreamReader
from fleetpulse.stream.fleet_view import FleetView, WorkerView

# Labels by worker only for workers that something is wrong with, and of many only so many: the counts say the rest.
MOST_NAMED_WORKERS: Final = 500
# A busy engine's step may take a few seconds.
STALLED_SECONDS: Final = 10.0
SKEWED_SECONDS: Final = 1.0
_WORKER: Final = ("worker_id", "instance_id")

DURATION_BOUNDS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class HttpMetrics:
    """Requests by route, never by path."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "fleetpulse_control_http_requests_total",
            "Requests answered; status 499 is a client that went away first",
            ("route", "method", "status"),
            registry=registry,
        )
        self.duration_seconds = Histogram(
            "fleetpulse_control_http_request_duration_seconds",
            "Time from request to answer",
            ("route",),
            buckets=DURATION_BOUNDS_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "fleetpulse_control_http_requests_in_flight", "Requests being answered", registry=registry
        )


class HeartbeatMetrics:
    """What became of each message on the heartbeat topic."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.observed = Counter(
            "fleetpulse_control_heartbeats_observed_total",
            "Heartbeats read, by what they were: first, next, restart, duplicate",
            ("observation",),
            registry=registry,
        )
        self.refused = Counter(
            "fleetpulse_control_heartbeats_refused_total",
            "Messages that are no heartbeats, by reason",
            ("reason",),
            registry=registry,
        )


class StateCollector(Collector):
    """The fleet, the stream and the database pool as they are at the moment of the scrape."""

    def __init__(self, view: FleetView, reader: StreamReader, database: Database) -> None:
        self._view = view
        self._reader = reader
        self._database = database

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client with every scrape."""
        now = time.monotonic()
        workers = GaugeMetricFamily("fleetpulse_control_workers", "Workers by state", labels=("state",))
        for state, count in self._view.counts(now).items():
            workers.add_metric((state,), count)
        yield workers
        yield GaugeMetricFamily(
            "fleetpulse_control_mass_silence",
            "1 while silence says more about the pipeline than about workers",
            value=float(self._view.mass_silence(now).active),
        )
        yield GaugeMetricFamily(
            "fleetpulse_control_stream_connected",
            "1 while the heartbeat topic is followed",
            value=float(self._reader.connected),
        )
        if self._reader.lag_records is not None:
            yield GaugeMetricFamily(
                "fleetpulse_control_stream_lag_records",
                "Heartbeats not read yet at the last look",
                value=float(self._reader.lag_records),
            )
        yield from worker_troubles(self._view.snapshot(now))
        yield from self._database_metrics()

    def _database_metrics(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "fleetpulse_control_database_usable",
            "1 while queries are let through",
            value=float(self._database.lacking is None),
        )
        statistics = self._database.statistics()
        for name, text in (
            ("pool_size", "Database connections open or being opened"),
            ("pool_available", "Database connections idle"),
            ("requests_waiting", "Requests waiting for a database connection"),
        ):
            label = name if name.startswith("pool_") else f"pool_{name}"
            yield GaugeMetricFamily(f"fleetpulse_control_database_{label}", text, value=float(statistics.get(name, 0)))


def worker_troubles(workers: Iterable[WorkerView]) -> Iterable[Metric]:
    """Workers that are silent, that stand still, or whose clock is off; a worker that is well has no series."""
    silent = GaugeMetricFamily(
        "fleetpulse_control_worker_silent_seconds",
        "Age of the last heartbeat of a stale worker that did not say goodbye",
        labels=_WORKER,
    )
    stalled = GaugeMetricFamily(
        "fleetpulse_control_worker_stalled_seconds",
        "Time without a step of an engine that has work, from 10 s on",
        labels=_WORKER,
    )
    skew = GaugeMetricFamily(
        "fleetpulse_control_worker_clock_skew_seconds",
        "A worker's clock minus ours, from 1 s either way; positive is ahead",
        labels=_WORKER,
    )
    for worker in workers:
        if worker.heartbeat is None:
            continue
        if worker.state == "stale":
            if worker.heartbeat.status != "draining":
                _name(silent, worker, worker.heartbeat_age_seconds or 0.0)
            continue
        if (worker.engine_stalled_seconds or 0.0) >= STALLED_SECONDS:
            _name(stalled, worker, worker.engine_stalled_seconds or 0.0)
        if abs(worker.clock_skew_seconds or 0.0) >= SKEWED_SECONDS:
            _name(skew, worker, worker.clock_skew_seconds or 0.0)
    return silent, stalled, skew


def _name(family: GaugeMetricFamily, worker: WorkerView, value: float) -> None:
    if len(family.samples) < MOST_NAMED_WORKERS:
        family.add_metric((worker.worker_id, worker.instance_id), value)
