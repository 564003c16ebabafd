"""What heartbeats say, and when."""

import asyncio
import itertools

import pytest

from agent.engines.adapter import EngineReading
from agent.engines.watch import ABSENT, EngineSnapshot
from agent.gpu_reading import GpuDevice, GpuReading
from agent.heartbeats import HeartbeatMaker, load_of, status_of
from agent.identity import identify
from agent.schedule import ticks
from agent.system import HostLoad
from fleetpulse.settings import AgentSettings
from fleetpulse.stream import heartbeat
from fleetpulse.stream.heartbeat import EngineState, Load, WorkerStatus

DEVICE = GpuDevice("GPU-1", 0, "NVIDIA H100")
GOOD = GpuReading(DEVICE, utilization_ratio=0.5, memory_used_bytes=30, memory_total_bytes=40)
OTHER = GpuReading(DEVICE, utilization_ratio=0.7, memory_used_bytes=10, memory_total_bytes=40)
LOST = GpuReading(DEVICE, failed=True)


def maker() -> HeartbeatMaker:
    identity = identify(AgentSettings(worker_id="worker-1", instance_id="instance-1"))
    return HeartbeatMaker(identity, 1.0, "http://127.0.0.1:8003", clock=lambda: 123)


def test_a_heartbeat_survives_the_readers_checks() -> None:
    values = {"requests_running": 2.0, "requests_waiting": 1.0, "kv_cache_usage_ratio": 0.5, "steps_total": 9.0}
    engine = EngineSnapshot("ready", "vllm", "http://e", ("llama",), [EngineReading("llama", "0", values)])
    made = maker().make("ready", engine, load_of(HostLoad(0.1, 0.2), [GOOD, OTHER]))
    read = heartbeat.decode(heartbeat.encode(made))
    assert read == made
    assert (read.worker_id, read.instance_id, read.model_id) == ("worker-1", "instance-1", "llama")
    assert read.engine is not None
    assert (read.engine.requests_waiting, read.engine.step_count) == (1, 9)
    assert read.load == Load(0.1, 0.2, 2, pytest.approx(0.6), pytest.approx(0.5))
    assert read.sent_unix_nano == 123
    assert len(read.agent_checksum or "") == 64


def test_heartbeats_of_a_boot_are_numbered_from_one() -> None:
    source = maker()
    assert [source.make("ready", ABSENT, Load()).sequence for _ in range(3)] == [1, 2, 3]


def test_each_start_is_a_boot_of_its_own() -> None:
    assert maker().identity.boot_id != maker().identity.boot_id


def test_a_reading_that_is_missing_is_none_rather_than_zero() -> None:
    assert load_of(None, [LOST]) == Load(gpu_count=1)


@pytest.mark.parametrize(
    ("engine", "was_ready", "gpus", "status"),
    [
        ("absent", False, [], "ready"),
        ("absent", False, [GOOD, LOST], "degraded"),
        ("unreachable", False, [], "starting"),
        ("starting", False, [], "starting"),
        ("ready", True, [GOOD], "ready"),
        ("unreachable", True, [], "degraded"),
        ("starting", True, [], "degraded"),
    ],
)
def test_the_status_follows_engine_and_gpus(
    engine: EngineState, was_ready: bool, gpus: list[GpuReading], status: WorkerStatus
) -> None:
    assert status_of(EngineSnapshot(engine), was_ready, gpus) == status


async def test_ticks_do_not_drift() -> None:
    interval, work = 0.03, 0.01
    stop, loop, times = asyncio.Event(), asyncio.get_running_loop(), []
    async for _ in ticks(interval, stop):
        times.append(loop.time())
        await asyncio.sleep(work)
        if len(times) == 20:
            stop.set()
    # From one tick to the next, whole intervals have passed. With the work on top, each would be off by that.
    steps = [(later - earlier) % interval for earlier, later in itertools.pairwise(times)]
    off = sorted(min(step, interval - step) for step in steps)
    assert off[len(off) // 2] < work / 2, off


async def test_missed_ticks_are_left_out() -> None:
    stop, loop, times = asyncio.Event(), asyncio.get_running_loop(), []
    async for _ in ticks(0.02, stop):
        times.append(loop.time())
        if len(times) == 1:
            await asyncio.sleep(0.11)
        if len(times) == 3:
            stop.set()
    assert times[2] - times[1] > 0.005


async def test_ticks_end_at_once_when_stopped() -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    began = loop.time()
    loop.call_later(0.05, stop.set)
    assert len([1 async for _ in ticks(60, stop)]) == 1
    assert loop.time() - began < 10
