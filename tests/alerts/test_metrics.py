"""The catalogue of metrics, and those that exist for alerts."""

from collections import Counter
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from agent.gpu_reading import NO_XID, GpuDevice, GpuReading
from agent.gpu_sources import NoGpus
from agent.http import ReadingsCollector
from agent.sampling import Latest
from collector.metrics import CollectorMetrics
from collector.upkeep import watch_policies
from control.metrics import MOST_NAMED_WORKERS, worker_troubles
from fleetpulse.database.connect import connect
from fleetpulse.local.metric_catalogue import families, unit
from fleetpulse.local.metric_labels import LABELS, SIGNALS
from fleetpulse.settings import DatabaseSettings
from fleetpulse.stream.fleet_view import FleetView
from fleetpulse.stream.heartbeat import Engine, Heartbeat


def test_names_are_unique_and_begin_with_their_service() -> None:
    names = [family.name for family in families()]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    for family in families():
        assert family.name.startswith((f"fleetpulse_{family.service}_", "gen_ai_server_"))
        assert (family.kind == "counter") == family.name.endswith("_total")
        assert family.text


def test_each_label_has_its_bound_and_each_bound_a_label() -> None:
    for service, labels in LABELS.items():
        used = {label for family in families() if family.service == service for label in family.labels}
        assert used == labels.keys(), service
        assert all(label.most >= max(1, len(label.values)) for label in labels.values())


def test_each_service_has_the_four_golden_signals() -> None:
    served = {family.name: family.service for family in families()}
    for service, signals in SIGNALS.items():
        assert list(signals) == ["traffic", "errors", "latency", "saturation"]
        assert {served[name] for names in signals.values() for name in names} == {service}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fleetpulse_x_age_seconds", "seconds"),
        ("fleetpulse_x_energy_joules_total", "J"),
        ("fleetpulse_x_last_timestamp_seconds", "Unix time in seconds"),
        ("fleetpulse_x_workers", "count"),
    ],
)
def test_the_unit_is_in_the_name(name: str, told: str) -> None:
    assert unit(name) == told


def beat(worker: str, sequence: int, sent: float, steps: int | None = None, **more: Any) -> Heartbeat:
    engine = None if steps is None else Engine(state="ready", requests_running=1, requests_waiting=0, step_count=steps)
    return Heartbeat(
        worker_id=worker,
        instance_id=f"{worker}-instance",
        boot_id="boot",
        sequence=sequence,
        sent_unix_nano=int(sent * 1e9),
        interval_seconds=1.0,
        status=more.get("status", "ready"),
        agent_version="1",
        engine=engine,
    )


def test_workers_in_trouble_have_series_of_their_own_and_others_none() -> None:
    view = FleetView()
    view.observe(beat("silent", 1, 1_000.0), 0.0, 1_000.0)
    view.observe(beat("parting", 1, 1_000.0, status="draining"), 0.0, 1_000.0)
    for second in range(31):
        view.observe(beat("well", second, 1_000.0 + second, steps=second), float(second), 1_000.0 + second)
        view.observe(beat("stalled", second, 1_000.0 + second, steps=7), float(second), 1_000.0 + second)
        view.observe(beat("ahead", second, 1_060.0 + second), float(second), 1_000.0 + second)
    shown = {
        (family.name, sample.labels["worker_id"]): sample.value
        for family in worker_troubles(view.snapshot(30.0))
        for sample in family.samples
    }
    assert shown == {
        ("fleetpulse_control_worker_silent_seconds", "silent"): 30.0,
        ("fleetpulse_control_worker_stalled_seconds", "stalled"): 30.0,
        ("fleetpulse_control_worker_clock_skew_seconds", "ahead"): 60.0,
    }


def test_when_everybody_is_silent_only_so_many_are_named() -> None:
    view = FleetView()
    for number in range(MOST_NAMED_WORKERS + 10):
        view.observe(beat(f"worker-{number}", 1, 1_000.0), 0.0, 1_000.0)
    silent, _, _ = worker_troubles(view.snapshot(60.0))
    assert len(silent.samples) == MOST_NAMED_WORKERS


def test_xid_events_are_counted_by_blame_from_zero() -> None:
    def shown(**counts: Any) -> dict[str, float]:
        latest = Latest(gpus=[GpuReading(GpuDevice("GPU-1", 0, "H100"), **counts)])
        registry = CollectorRegistry()
        registry.register(ReadingsCollector(latest, NoGpus()))
        found = text_string_to_metric_families(generate_latest(registry).decode())
        return {
            sample.labels["blame"]: sample.value
            for family in found
            if family.name == "fleetpulse_agent_gpu_xid_events"
            for sample in family.samples
        }

    assert shown(xid_errors={NO_XID: 0}) == {"application": 0, "device": 0}
    assert shown(xid_errors={NO_XID: 0, 13: 2, 31: 1, 79: 4}) == {"application": 3, "device": 4}
    assert shown(xid_errors=None) == {}


@pytest.mark.timescale
async def test_timescales_own_jobs_are_watched(timescale_url: str) -> None:
    metrics = CollectorMetrics()
    async with await connect(DatabaseSettings(url=timescale_url), "test") as connection:
        await watch_policies(connection, metrics)
    # Its background workers stand still here, so that no job has ever run.
    assert metrics.registry.get_sample_value("fleetpulse_collector_policies_failing") == 0
    refreshed = "fleetpulse_collector_upkeep_last_success_timestamp_seconds"
    assert metrics.registry.get_sample_value(refreshed, {"work": "rollup_minutes"}) is None
