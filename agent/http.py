"""The agent's HTTP endpoints: /metrics, /healthz, /readyz and /logs."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from agent.columns import columns
from agent.gpu_reading import APPLICATION_XIDS, GpuReading, GpuSource
from agent.sampling import Latest
from fleetpulse.http import add_health_endpoints
from fleetpulse.stream import dictionary
from fleetpulse.stream.measure import Measure
from fleetpulse.telemetry import RecentEvents

LABELS: Final = {
    dictionary.GPU.name: ("gpu", ("hw_id",)),
    dictionary.SYSTEM.name: ("system", ()),
    dictionary.ENGINE.name: ("engine", ("model", "engine")),
}
ENGINE_STATES: Final = ("absent", "unreachable", "starting", "ready")
DRIVER_STATES: Final = ("absent", "failed", "ready")
XID_BLAME: Final = ("application", "device")
LOG_EVENTS_DEFAULT: Final = 100


class ReadingsCollector:
    """The newest readings as Prometheus series, named after the columns that they become in the database."""

    def __init__(self, latest: Latest, gpus: GpuSource) -> None:
        self._latest = latest
        self._gpus = gpus

    def describe(self) -> Iterable[Metric]:
        """Every family that there may be, without values; also called by prometheus_client."""
        for table in dictionary.TABLES:
            subject, labels = LABELS[table.name]
            for measure in table.measures:
                yield _family(f"fleetpulse_agent_{subject}_{measure.column}", measure, labels, {})
        yield from self._own_families()

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client with every scrape."""
        measurements = self._latest.measurements()
        for table in dictionary.TABLES:
            subject, labels = LABELS[table.name]
            found = columns(table, measurements)
            for measure in table.measures:
                rows = found.get(measure.column)
                if rows is not None:
                    yield _family(f"fleetpulse_agent_{subject}_{measure.column}", measure, labels, rows)
        yield from self._own_families()

    def _own_families(self) -> Iterable[Metric]:
        yield _xid_events(self._latest.gpus)
        engine = self._latest.engine
        yield _states("fleetpulse_agent_engine_state", "State of the engine", ENGINE_STATES, engine.state)
        yield _states("fleetpulse_agent_gpu_driver_state", "State of the driver", DRIVER_STATES, self._gpus.state)
        missing = GaugeMetricFamily(
            "fleetpulse_agent_engine_measure_missing",
            "1 for a measure that the engine has never reported",
            labels=("measure",),
        )
        for column in sorted(engine.missing):
            missing.add_metric((column,), 1.0)
        yield missing


def application(
    registry: CollectorRegistry, recent: RecentEvents, lacking: Callable[[], Mapping[str, str]]
) -> web.Application:
    """The endpoints."""
    app = web.Application()
    add_health_endpoints(app, registry, lacking)

    async def logs(request: web.Request) -> web.Response:
        text = request.query.get("limit", str(LOG_EVENTS_DEFAULT))
        if not text.isdecimal() or not 1 <= int(text) <= 100_000:
            return web.json_response({"error": "limit must be a number from 1 to 100000"}, status=400)
        events = recent.newest(int(text))
        return web.json_response({"events": events}, dumps=_dumps)

    app.router.add_get("/logs", logs)
    return app


def _family(name: str, measure: Measure, labels: tuple[str, ...], rows: Mapping[tuple[str, ...], float]) -> Metric:
    family_type = CounterMetricFamily if measure.kind == "counter" else GaugeMetricFamily
    family = family_type(name, measure.help, labels=labels)
    for row, value in rows.items():
        family.add_metric(row, value)
    return family


def _xid_events(readings: Iterable[GpuReading]) -> Metric:
    """XID events by blame. Both series are there from the start, so that a first event is an increase."""
    family = CounterMetricFamily(
        "fleetpulse_agent_gpu_xid_events_total", "XID events, by what they say is at fault", labels=("hw_id", "blame")
    )
    for reading in readings:
        if reading.xid_errors is None:
            continue
        application = sum(count for code, count in reading.xid_errors.items() if code in APPLICATION_XIDS)
        for blame, count in zip(XID_BLAME, (application, sum(reading.xid_errors.values()) - application), strict=True):
            family.add_metric((reading.device.hw_id, blame), count)
    return family


def _states(name: str, text: str, states: tuple[str, ...], current: str) -> Metric:
    family = GaugeMetricFamily(name, f"{text}: 1 for the current one", labels=("state",))
    for state in states:
        family.add_metric((state,), float(state == current))
    return family


def _dumps(value: object) -> str:
    return json.dumps(value, default=str)
