"""NVML through pynvml, against a stub driver."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.gpu import NvmlGpus
from agent.gpu_reading import GpuReading, measurements


@pytest.fixture
def gpus(nvml: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[NvmlGpus]:
    monkeypatch.setattr("agent.gpu_events.WAIT_MILLISECONDS", 50)
    source = NvmlGpus()
    yield source
    source.stop()


def poll(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def first(source: NvmlGpus) -> GpuReading:
    return source.read()[0]


def test_every_reading_arrives_in_our_units(nvml, gpus) -> None:
    nvml.set(
        gpu_0__utilization=42,
        gpu_0__encoder=7,
        gpu_0__decoder=9,
        gpu_0__memory_used=1 << 34,
        gpu_0__memory_total=1 << 36,
        gpu_0__temperature_v=61,
        gpu_0__power=412345,
        gpu_0__power_limit=700000,
        gpu_0__energy=987654321,
        gpu_0__sm_clock=1755,
        gpu_0__memory_clock=2619,
        gpu_0__ecc_corrected=3,
        gpu_0__ecc_uncorrected=1,
    )
    gpus.start()
    reading = first(gpus)
    assert gpus.state == "ready"
    assert reading.device.hw_id == "GPU-00000000-0000-0000-0000-000000000000"
    assert (reading.device.index, reading.device.model) == (0, "NVIDIA Stub 80GB")
    assert not reading.failed
    assert reading.utilization_ratio == 0.42
    assert reading.encoder_utilization_ratio == 0.07
    assert reading.decoder_utilization_ratio == 0.09
    assert (reading.memory_used_bytes, reading.memory_total_bytes) == (1 << 34, 1 << 36)
    assert reading.temperature_celsius == 61
    assert reading.memory_temperature_celsius == 62
    assert reading.power_watts == pytest.approx(412.345)
    assert reading.power_limit_watts == 700
    assert reading.energy_joules == pytest.approx(987654.321)
    assert reading.sm_clock_hertz == 1.755e9
    assert reading.memory_clock_hertz == 2.619e9
    assert (reading.corrected_errors, reading.uncorrected_errors) == (3, 1)
    assert (reading.thermal_throttle, reading.power_throttle) == (False, False)


def test_readings_follow_the_device(nvml, gpus) -> None:
    gpus.start()
    assert first(gpus).utilization_ratio == 0.5
    nvml.set(gpu_0__utilization=99)
    assert first(gpus).utilization_ratio == 0.99


def test_all_gpus_are_read_in_the_order_of_their_index(nvml, gpus) -> None:
    nvml.set(gpus=8)
    gpus.start()
    assert [reading.device.index for reading in gpus.read()] == list(range(8))


def test_limits_come_from_the_margin_where_the_driver_has_it(nvml, gpus) -> None:
    nvml.set(gpu_0__temperature_v=60, gpu_0__margin=27, **{"gpu_0__field.194": -2, "gpu_0__field.193": -5})
    gpus.start()
    reading = first(gpus)
    assert reading.slowdown_temperature_celsius == 89
    assert reading.shutdown_temperature_celsius == 92


def test_limits_come_from_the_thresholds_of_older_drivers(nvml, gpus) -> None:
    nvml.set(gpu_0__margin="error 13", **{"gpu_0__threshold.1": 88, "gpu_0__threshold.0": 93})
    gpus.start()
    reading = first(gpus)
    assert reading.slowdown_temperature_celsius == 88
    assert reading.shutdown_temperature_celsius == 93


def test_a_device_without_limits_has_none(nvml, gpus) -> None:
    errors = {"gpu_0__threshold.1": "error 3", "gpu_0__threshold.0": "error 3"}
    nvml.set(gpu_0__margin="error 3", **errors)
    gpus.start()
    assert first(gpus).slowdown_temperature_celsius is None


@pytest.mark.parametrize(
    ("bits", "thermal", "power"),
    [
        (0x0, False, False),
        (0x1, False, False),  # idle
        (0x4, False, True),  # software power cap
        (0x80, False, True),  # power brake
        (0x20, True, False),  # software thermal
        (0x40, True, False),  # hardware thermal
        (0x60 | 0x84, True, True),
    ],
)
def test_throttle_reasons_are_told_apart(nvml, gpus, bits: int, thermal: bool, power: bool) -> None:
    nvml.set(gpu_0__event_reasons=bits)
    gpus.start()
    reading = first(gpus)
    assert (reading.thermal_throttle, reading.power_throttle) == (thermal, power)


def test_older_drivers_calls_are_used_where_newer_ones_are_missing(nvml, gpus) -> None:
    nvml.set(
        gpu_0__memory_used="error 13",
        gpu_0__memory_v1_used=12345,
        gpu_0__temperature_v="error 13",
        gpu_0__temperature=71,
        gpu_0__event_reasons="error 13",
        gpu_0__throttle_reasons=0x40,
    )
    gpus.start()
    reading = first(gpus)
    assert reading.memory_used_bytes == 12345
    assert reading.temperature_celsius == 71
    assert reading.thermal_throttle is True


def test_an_unsupported_reading_is_absent_rather_than_zero(nvml, gpus) -> None:
    calls = ("utilization", "encoder", "decoder", "memory_used", "memory_v1_used", "temperature_v", "temperature")
    more = ("power", "power_limit", "energy", "sm_clock", "memory_clock", "ecc_corrected", "ecc_uncorrected", "fields")
    last = ("event_reasons", "throttle_reasons", "margin", "threshold.0", "threshold.1", "register_events")
    nvml.set(gpus=1, **{f"gpu_0__{name}": "error 3" for name in (*calls, *more, *last)})
    gpus.start()
    reading = first(gpus)
    assert reading == GpuReading(reading.device)
    assert {m.instrument.name for m in measurements([reading])} == {"hw.status"}


def test_a_gpu_off_the_bus_is_failed_and_the_others_go_on(nvml, gpus) -> None:
    gpus.start()
    nvml.set(gpu_0__all="error 15")
    lost, alive = gpus.read()
    assert lost.failed
    assert lost.utilization_ratio is None
    assert alive.utilization_ratio == 0.5
    states = {(m.attributes["fleetpulse.gpu.index"], m.attributes["hw.state"]): m.value for m in status_of(gpus)}
    assert states == {(0, "ok"): 0, (0, "failed"): 1, (1, "ok"): 1, (1, "failed"): 0}


def status_of(gpus: NvmlGpus) -> list:
    return [m for m in measurements(gpus.read()) if m.instrument.name == "hw.status"]


def test_a_gpu_that_is_lost_halfway_through_its_readings_is_failed(nvml, gpus) -> None:
    gpus.start()
    nvml.set(gpu_1__energy="error 16")
    assert [reading.failed for reading in gpus.read()] == [False, True]


def test_a_gpu_that_came_back_is_read_again(nvml, gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.gpu.RETRY_SECONDS", 0.0)
    gpus.start()
    nvml.set(gpu_0__all="error 15")
    assert gpus.read()[0].failed
    assert gpus.read()[0].failed, "still known after the driver was opened without it"
    nvml.set(gpu_0__all="0")
    poll(lambda: not gpus.read()[0].failed)


def test_xid_events_are_counted_by_code_and_device(nvml, gpus, caplog: pytest.LogCaptureFixture) -> None:
    gpus.start()
    assert [dict(reading.xid_errors or {}) for reading in gpus.read()] == [{0: 0}, {0: 0}]
    nvml.set(event_1="0 79", event_2="1 13", event_3="0 79", event_4="0 48")
    poll(lambda: first(gpus).xid_errors == {0: 0, 48: 1, 79: 2})
    assert gpus.read()[1].xid_errors == {0: 0, 13: 1}
    counted = {
        (m.attributes["fleetpulse.gpu.index"], m.attributes["fleetpulse.gpu.xid"]): m.value
        for m in measurements(gpus.read())
        if m.instrument.name == "fleetpulse.gpu.xid.errors"
    }
    assert counted == {(0, 0): 0, (0, 48): 1, (0, 79): 2, (1, 0): 0, (1, 13): 1}
    levels = {record.__dict__["xid"]: record.levelname for record in caplog.records if "xid" in record.__dict__}
    assert levels == {79: "ERROR", 48: "ERROR", 13: "WARNING"}


def test_an_xid_event_of_no_known_device_counts_for_all(nvml, gpus) -> None:
    gpus.start()
    nvml.set(event_1="-1 79")
    poll(lambda: all((reading.xid_errors or {}).get(79) == 1 for reading in gpus.read()))


def test_a_device_without_xid_events_has_no_counter(nvml, gpus) -> None:
    nvml.set(gpu_0__register_events="error 3")
    gpus.start()
    assert [reading.xid_errors for reading in gpus.read()] == [None, {0: 0}]


def test_the_event_thread_ends_promptly(nvml, gpus) -> None:
    gpus.start()
    began = time.monotonic()
    gpus.stop()
    assert time.monotonic() - began < 1.0


def test_an_absent_library_is_a_state(no_nvml: None) -> None:
    source = NvmlGpus()
    source.start()
    assert source.state == "absent"
    assert source.read() == []
    source.stop()


def test_an_absent_driver_is_found_when_it_appears(nvml, gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.gpu.RETRY_SECONDS", 0.0)
    nvml.set(init=9)
    gpus.start()
    assert gpus.state == "absent"
    nvml.set(init=0)
    assert len(gpus.read()) == 2
    assert gpus.state == "ready"


def test_a_driver_that_fails_is_told_apart_from_an_absent_one(nvml, gpus) -> None:
    nvml.set(init=18)
    gpus.start()
    assert gpus.state == "failed"
    assert gpus.read() == []


def test_the_library_is_found_where_the_linker_looks(nvml_library: Path) -> None:
    program = "from agent.gpu import NvmlGpus; g = NvmlGpus(); g.start(); print(len(g.read()), g.state); g.stop()"
    environment = {"LD_LIBRARY_PATH": str(nvml_library.parent), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "8 ready"
