"""Simulated GPUs behave like GPUs."""

import statistics

import pytest

from agent.gpu_reading import GpuReading
from agent.gpu_sources import NoGpus, choose
from agent.simulated_gpu import LOADS, SHUTDOWN_CELSIUS, SimulatedGpus
from fleetpulse.settings import AgentSettings

HOUR = 3_600.0


def settings(load: str = "bursty", count: int = 2) -> AgentSettings:
    return AgentSettings(simulate_gpu_count=count, simulate_gpu_load=load)


class Clock:
    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


def run(worker_id: str, load: str, steps: int, step_seconds: float = 5.0) -> list[list[GpuReading]]:
    clock = Clock()
    gpus = SimulatedGpus(worker_id, settings(load), clock)
    found = []
    for _ in range(steps):
        clock.now += step_seconds
        found.append(gpus.read())
    return found


def test_the_same_worker_sees_the_same_load_and_another_does_not() -> None:
    assert run("a", "bursty", 20) == run("a", "bursty", 20)
    assert run("a", "bursty", 20) != run("b", "bursty", 20)


@pytest.mark.parametrize("load", LOADS)
def test_readings_stay_within_what_a_board_can_do(load: str) -> None:
    for readings in run("w", load, 500, step_seconds=30):
        for reading in readings:
            assert 0 <= reading.utilization_ratio <= 1
            assert 0 < reading.memory_used_bytes <= reading.memory_total_bytes
            assert 25 < reading.temperature_celsius < SHUTDOWN_CELSIUS
            assert 60 < reading.power_watts <= reading.power_limit_watts


def test_power_and_temperature_follow_the_load() -> None:
    readings = [first for first, _ in run("w", "bursty", 800)]
    busy = [r.utilization_ratio for r in readings]
    assert statistics.correlation(busy, [r.power_watts for r in readings]) > 0.9
    assert statistics.correlation(busy, [r.temperature_celsius for r in readings]) > 0.6
    assert max(busy) > 0.8
    assert min(busy) < 0.2


def test_a_day_has_a_busy_and_a_quiet_time() -> None:
    readings = [first.utilization_ratio for first, _ in run("w", "daily", 24, step_seconds=HOUR)]
    assert max(readings) - min(readings) > 0.5


def test_energy_only_grows_and_is_the_power_over_time() -> None:
    joules = [first.energy_joules for first, _ in run("w", "steady", 100)]
    assert joules == sorted(joules)
    watts = (joules[-1] - joules[0]) / (99 * 5)
    assert 500 < watts < 650


def test_gpus_have_ids_of_their_own() -> None:
    ids = {reading.device.hw_id for worker in ("a", "b") for reading in run(worker, "idle", 1)[0]}
    assert len(ids) == 4
    assert all(len(hw_id) == 40 and hw_id.startswith("GPU-") for hw_id in ids)


def test_the_setting_chooses_the_source(no_nvml: None) -> None:
    assert isinstance(choose(AgentSettings(gpus="none", simulate_gpu_count=2), "w"), NoGpus)
    assert isinstance(choose(settings(), "w"), SimulatedGpus)
    assert type(choose(AgentSettings(), "w")).__name__ == "NvmlGpus"
    assert type(choose(AgentSettings(gpus="nvml", simulate_gpu_count=2), "w")).__name__ == "NvmlGpus"


def test_the_seeds_names_configure_the_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_SIMULATE_GPU_COUNT", "3")
    monkeypatch.setenv("WORKER_SIMULATE_GPU_MODEL", "NVIDIA L4")
    monkeypatch.setenv("WORKER_SIMULATE_GPU_VRAM_BYTES", "24000000000")
    readings = choose(AgentSettings(), "w").read()
    assert [r.device.model for r in readings] == ["NVIDIA L4"] * 3
    assert readings[0].memory_total_bytes == 24_000_000_000
