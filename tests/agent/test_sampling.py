"""A source that hangs or fails costs its own readings and nothing else."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from agent.blocking import BlockingThread, StillBusyError
from agent.exporter import Exporter
from agent.gpu_reading import DriverState, GpuDevice, GpuReading
from agent.sampling import Sampler
from agent.signals import Signals
from agent.system import SystemReader


class StubbornGpus:
    """A driver that can hang or fail."""

    def __init__(self) -> None:
        self.state: DriverState = "ready"
        self.free = threading.Event()
        self.free.set()
        self.error: Exception | None = None

    def start(self) -> None:
        self.free.wait()

    def read(self) -> list[GpuReading]:
        self.free.wait()
        if self.error is not None:
            raise self.error
        return [GpuReading(GpuDevice("GPU-1", 0, "NVIDIA H100"), utilization_ratio=0.5)]

    def stop(self) -> None:
        self.free.wait()


@pytest.fixture
async def sampler() -> AsyncIterator[Sampler]:
    exporter = Exporter({}, "1", 1, 1)
    made = Sampler(SystemReader(), StubbornGpus(), exporter, Signals(CollectorRegistry()), timeout_seconds=0.1)
    yield made
    made.gpus.free.set()
    await made.stop()


def failures(sampler: Sampler, source: str) -> float:
    return sampler.signals.sample_failures.labels(source)._value.get()


async def test_a_driver_that_hangs_leaves_the_host_readings(sampler: Sampler, eventually: Callable) -> None:
    await sampler.start()
    sampler.gpus.free.clear()
    for _ in range(2):
        await sampler.sample([])
        assert sampler.latest.gpus == []
        assert sampler.latest.system
    assert failures(sampler, "gpu") == 2
    sampler.gpus.free.set()
    await eventually(lambda: sampler.gpu_thread._running.done())
    await sampler.sample([])
    assert sampler.latest.gpus[0].utilization_ratio == 0.5


async def test_a_driver_that_fails_is_survived_and_told_once(sampler: Sampler, caplog) -> None:
    sampler.gpus.error = RuntimeError("driver trouble")
    for _ in range(3):
        await sampler.sample([])
    assert failures(sampler, "gpu") == 3
    assert len([record for record in caplog.records if record.message == "no reading"]) == 1


async def test_stopping_does_not_wait_for_a_driver_that_hangs(sampler: Sampler) -> None:
    sampler.gpus.free.clear()
    await sampler.sample([])
    loop = asyncio.get_running_loop()
    began = loop.time()
    await sampler.stop()
    assert loop.time() - began < 2


async def test_a_blocking_call_brings_back_results_and_errors() -> None:
    thread = BlockingThread("test")
    assert await thread.call(lambda: 42, 1) == 42
    with pytest.raises(ZeroDivisionError):
        await thread.call(lambda: 1 / 0, 1)
    await thread.stop(1)


async def test_an_error_that_comes_too_late_is_not_reported_as_overlooked(eventually: Callable) -> None:
    thread, free, told = BlockingThread("test"), threading.Event(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    def fail() -> None:
        free.wait()
        raise ZeroDivisionError

    with pytest.raises(TimeoutError):
        await thread.call(fail, 0.01)
    free.set()
    await eventually(lambda: thread._running.done())
    await thread.stop(1)
    thread._running = None
    gc.collect()
    assert told == []


async def test_a_busy_thread_says_so() -> None:
    thread, free = BlockingThread("test"), threading.Event()
    with pytest.raises(TimeoutError):
        await thread.call(free.wait, 0.01)
    with pytest.raises(StillBusyError):
        await thread.call(free.wait, 0.01)
    free.set()
    await thread.stop(1)


async def test_the_event_loop_runs_while_a_driver_hangs(sampler: Sampler) -> None:
    sampler.gpus.free.clear()
    task = asyncio.create_task(sampler.sample([]))
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10


def test_documentation_lists_every_instrument_and_every_signal() -> None:
    from agent import instruments

    text = (Path(__file__).parents[2] / "docs" / "agent.md").read_text()
    for instrument in instruments.ALL:
        assert f"| `{instrument.name}` | {instrument.unit} |" in text, instrument.name
    registry = CollectorRegistry()
    Signals(registry)
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}`" in text, name
