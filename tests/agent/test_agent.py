"""The whole agent, in process, against a real HTTP door."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

import agent.main
from fleetpulse.settings import AgentSettings, SettingsError, StreamSettings
from fleetpulse.stream import heartbeat, identity

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def settings(tmp_path: Path, **others: object) -> AgentSettings:
    defaults: dict[str, object] = {
        "worker_id": "worker-1",
        "port": free_port(),
        "transport": "http",
        "worker_token": "secret",
        "heartbeat_interval_seconds": 0.05,
        "sample_interval_seconds": 0.1,
        "simulate_gpu_count": 2,
        "state_dir": tmp_path,
    }
    return AgentSettings(**(defaults | others))  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(options: AgentSettings) -> AsyncIterator[str]:
    """An agent's URL while it runs; leaving stops it, and fails if it failed or took too long."""
    stop = asyncio.Event()
    stream = StreamSettings(bootstrap="127.0.0.1:1", request_timeout_seconds=0.5)
    task = asyncio.create_task(agent.main.run(options, stream, stop))
    try:
        yield f"http://127.0.0.1:{options.port}"
    finally:
        stop.set()
        began = time.monotonic()
        await asyncio.wait_for(task, 10)
        assert time.monotonic() - began < 5


def segments(folder: Path) -> list[Path]:
    return list(folder.rglob("*.segment"))


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


def sequences(bodies: list[bytes]) -> list[int]:
    return [heartbeat.decode(body).sequence for body in bodies]


def exports(bodies: list[bytes]) -> list[int]:
    found = []
    for body in bodies:
        (resource,) = ExportMetricsServiceRequest.FromString(body).resource_metrics
        for metric in resource.scope_metrics[0].metrics:
            if metric.name == identity.EXPORTS_METRIC:
                found += [point.as_int for point in metric.sum.data_points]
    return found


async def test_heartbeats_and_samples_arrive_in_order_through_the_door(door, tmp_path, eventually: Eventually) -> None:
    async with running(settings(tmp_path, collector_url=door.url)):
        await eventually(lambda: len(door.heartbeats) >= 5 and len(door.metrics) >= 3)
    assert door.authorizations == {"Bearer secret"}
    assert sequences(door.heartbeats) == list(range(1, len(door.heartbeats) + 1))
    assert exports(door.metrics) == list(range(1, len(door.metrics) + 1))
    last = heartbeat.decode(door.heartbeats[-1])
    assert last.status == "draining"
    assert last.load is not None
    assert last.load.gpu_count == 2
    assert last.engine == heartbeat.Engine("absent")


async def test_all_messages_of_a_boot_have_the_same_length(door, tmp_path, eventually: Eventually) -> None:
    async with running(settings(tmp_path, collector_url=door.url)):
        # A reading that a busy host keeps waiting is left out of its message.
        await eventually(lambda: len(door.metrics) >= 4 and len({len(body) for body in door.metrics[-4:]}) == 1)


async def test_a_busy_door_costs_time_but_no_message(door, tmp_path, eventually: Eventually) -> None:
    door.statuses = [503, 429, 503, 401, 500]
    async with running(settings(tmp_path, collector_url=door.url)):
        await eventually(lambda: not door.statuses and len(door.heartbeats) >= 40 and len(door.metrics) >= 15)
    assert list(dict.fromkeys(sequences(door.heartbeats))) == list(range(1, max(sequences(door.heartbeats)) + 1))
    assert list(dict.fromkeys(exports(door.metrics))) == list(range(1, max(exports(door.metrics)) + 1))


async def test_a_message_the_door_refuses_is_dropped_and_counted(door, tmp_path, eventually: Eventually) -> None:
    door.statuses = [400]
    options = settings(tmp_path, collector_url=door.url)
    async with running(options) as url:
        await eventually(lambda: len(door.heartbeats) >= 3)
        _, text = await get(f"{url}/metrics")
    refused = [line for line in text.splitlines() if line.startswith("fleetpulse_agent_messages_refused_total")]
    assert sum(float(line.split()[-1]) for line in refused) == 1
    assert sequences(door.heartbeats)[0] in (1, 2)


async def test_what_is_made_while_nobody_listens_arrives_after_a_restart(
    door, tmp_path, eventually: Eventually
) -> None:
    nobody = settings(tmp_path, collector_url="http://127.0.0.1:1")
    async with running(nobody):
        await eventually(lambda: sum(path.stat().st_size for path in segments(tmp_path)) > 20_000)
    async with running(settings(tmp_path, collector_url=door.url)):
        await eventually(lambda: len({heartbeat.decode(body).boot_id for body in door.heartbeats}) == 2)
    first_boot = heartbeat.decode(door.heartbeats[0]).boot_id
    spooled = [body for body in door.heartbeats if heartbeat.decode(body).boot_id == first_boot]
    assert sequences(spooled) == list(range(1, len(spooled) + 1))
    assert len(spooled) > 1
    assert heartbeat.decode(spooled[-1]).status == "draining"


async def test_an_absent_broker_delays_neither_heartbeats_nor_the_stop(tmp_path: Path, eventually: Eventually) -> None:
    options = settings(tmp_path, transport="kafka", otlp_endpoint="http://127.0.0.1:1/v1/metrics")
    began = time.monotonic()
    async with running(options) as url:
        await eventually(lambda: len(segments(tmp_path)) >= 2)
        status, text = await get(f"{url}/readyz")
        _, exposed = await get(f"{url}/metrics")
        elapsed = time.monotonic() - began
    assert status == 503
    assert "stream" in json.loads(text)["missing"]
    made = next(line for line in exposed.splitlines() if line.startswith("fleetpulse_agent_heartbeats_total "))
    assert float(made.split()[-1]) >= 0.5 * elapsed / options.heartbeat_interval_seconds
    assert segments(tmp_path)


async def test_the_engine_is_in_heartbeats_and_samples(engine, door, tmp_path, eventually: Eventually) -> None:
    options = settings(tmp_path, collector_url=door.url, engine="vllm", engine_url=engine.url)
    async with running(options):
        await eventually(lambda: any(heartbeat.decode(b).model_id for b in door.heartbeats))
        await eventually(lambda: any(b"fleetpulse.engine.steps" in body for body in door.metrics))
    last = heartbeat.decode(door.heartbeats[-1])
    assert last.engine is not None
    assert (last.engine.state, last.engine.requests_waiting, last.engine.step_count) == ("ready", 7, 1200)


TOLD = (
    "fleetpulse_agent_samples_total",
    'fleetpulse_agent_messages_sent_total{kind="metrics"}',
    'fleetpulse_agent_spool_bytes{kind="heartbeats"} 0.0',
    'fleetpulse_agent_engine_state{state="ready"} 1.0',
    'fleetpulse_agent_gpu_driver_state{state="ready"} 1.0',
    "fleetpulse_agent_gpu_temperature_celsius{hw_id=",
    "fleetpulse_agent_gpu_energy_joules_total{hw_id=",
    "fleetpulse_agent_system_memory_used_bytes ",
    'fleetpulse_agent_engine_requests_waiting{engine="0",model="meta-llama/Llama-3.1-8B-Instruct"} 7.0',
)


async def all_told(url: str) -> bool:
    """Whether the agent's metrics have all of TOLD; what they lack is shown when the test fails."""
    _, exposed = await get(f"{url}/metrics")
    missing = [name for name in TOLD if name not in exposed]
    print("missing:", *missing)
    return not missing


async def test_the_http_endpoints_tell_of_the_agent(
    door, engine, tmp_path: Path, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="fleetpulse")
    options = settings(tmp_path, collector_url=door.url, engine="vllm", engine_url=engine.url)
    async with running(options) as url:
        await eventually(lambda: len(door.metrics) >= 2)
        assert (await get(f"{url}/healthz"))[0] == 200
        assert (await get(f"{url}/readyz"))[0] == 200
        # On a busy machine a reading may take longer than the short interval here, and the next one tells.
        async with asyncio.timeout(10):
            while not await all_told(url):  # noqa: ASYNC110 - asked over HTTP
                await asyncio.sleep(0.05)
        status, logs = await get(f"{url}/logs?limit=1")
        wrong, _ = await get(f"{url}/logs?limit=many")
    assert (status, wrong) == (200, 400)
    (event,) = json.loads(logs)["events"]
    assert {"time", "level", "logger", "message"} <= set(event)


async def test_two_agents_do_not_share_a_spool(door, tmp_path: Path, eventually: Eventually) -> None:
    async with running(settings(tmp_path, collector_url=door.url)):
        await eventually(lambda: bool(door.heartbeats))
        with pytest.raises(SettingsError, match="FLEETPULSE_AGENT_SPOOL_DIR"):
            await agent.main.run(settings(tmp_path, collector_url=door.url), StreamSettings(), asyncio.Event())


async def test_the_http_transport_needs_to_know_the_door(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="FLEETPULSE_AGENT_COLLECTOR_URL"):
        await agent.main.run(settings(tmp_path), StreamSettings(), asyncio.Event())


def test_a_wrong_setting_is_one_line_and_exit_code_2() -> None:
    program = "import sys, agent.main; sys.exit(agent.main.main())"
    environment = os.environ | {"FLEETPULSE_AGENT_SAMPLE_INTERVAL_SECONDS": "often"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "FLEETPULSE_AGENT_SAMPLE_INTERVAL_SECONDS" in line


def test_sigterm_ends_the_process_in_time_with_the_unsent_on_disk(tmp_path: Path) -> None:
    environment = os.environ | {
        "FLEETPULSE_AGENT_WORKER_ID": "worker-1",
        "FLEETPULSE_AGENT_STATE_DIR": str(tmp_path),
        "FLEETPULSE_AGENT_PORT": "0",
        "FLEETPULSE_KAFKA_BOOTSTRAP": "127.0.0.1:1",
        "WORKER_SIMULATE_GPU_COUNT": "1",
        "FLEETPULSE_LOG_FORMAT": "json",
    }
    program = "import sys, agent.main; sys.exit(agent.main.main())"
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        while "agent started" not in child.stderr.readline():
            assert child.poll() is None
        began = time.monotonic()
        child.terminate()
        assert child.wait(timeout=10) == 0
        assert time.monotonic() - began < 5
    (folder,) = (tmp_path / "spool").iterdir()
    assert segments(folder / "heartbeats"), "the last heartbeat says that the worker leaves"


async def test_another_otlp_endpoint_gets_the_same_samples(door, tmp_path: Path, eventually: Eventually) -> None:
    nobody = "http://127.0.0.1:1"
    options = settings(tmp_path, collector_url=nobody, otlp_endpoint=f"{door.url}/v1/metrics")
    async with running(options):
        await eventually(lambda: len(door.metrics) >= 2)
    assert exports(door.metrics)[0] >= 1
