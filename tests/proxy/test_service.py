"""The proxy as a service: its start and end, its metrics, its outages, and several processes on one port."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time
import urllib.error
import urllib.request

import aiohttp
import pytest
import uvloop

from fleetpulse.local.ports import free_port
from fleetpulse.local.processes import Child
from fleetpulse.stream.usage import UsageRecord
from proxy.fleet import Address
from proxy.listen import listen
from proxy.metrics import DURATION_BOUNDS, FIRST_TOKEN_BOUNDS, PER_TOKEN_BOUNDS
from proxy.relay.connection import Pool
from proxy.spool import Spool

MODEL = "acme/mock-model"


async def test_it_is_ready_once_it_knows_keys_and_the_stream(site) -> None:
    await site.start()
    async with site.session.get(f"{site.url}/readyz") as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "ready"})
    async with site.session.get(f"{site.url}/healthz") as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "ok"})


async def test_without_a_database_it_serves_whom_it_knows(site, postgres_server, proxy_database_url) -> None:
    await site.start()
    await site.worker(await site.engine())
    await site.routed(1)
    sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fleetpulse-proxy'"
    await site.book.connection.execute("ALTER DATABASE proxy CONNECTION LIMIT 0")
    try:
        # A superuser is let in all the same, so the name goes too.
        site.database.url = type(site.database.url)("postgresql://127.0.0.1:1/none")
        await site.book.connection.execute(sql)

        async def is_old() -> bool:
            return await site.metric("fleetpulse_proxy_access_current") == 0

        await site.until(is_old, "the outage to be noticed")
        assert (await site.chat())[0] == 200
        assert (await site.session.get(f"{site.url}/readyz")).status == 200
    finally:
        await site.book.connection.execute("ALTER DATABASE proxy CONNECTION LIMIT -1")


async def test_without_a_broker_it_serves_with_the_fleet_it_knows_and_keeps_the_books(site, broker) -> None:
    await site.start()
    await site.worker(await site.engine())
    await site.routed(1)
    broker.stop()
    for _ in range(5):
        assert (await site.chat())[0] == 200
    assert await site.metric("fleetpulse_proxy_usage_records_waiting") == 5
    broker.start()
    records = await site.all_usage()
    assert len({record.record_id for record in records}) == 5


async def test_its_metrics_tell_the_golden_signals(site) -> None:
    await site.start()
    await site.worker(await site.engine())
    await site.routed(1)
    await site.chat(stream=True)
    await site.chat()
    await site.chat(model="acme/made-up")
    labels = f'gen_ai_operation_name="chat",gen_ai_request_model="{MODEL}"'
    assert (
        await site.metric(f'fleetpulse_proxy_requests_total{{model="{MODEL}",outcome="completed",status="200"}}') == 2
    )
    assert await site.metric('fleetpulse_proxy_requests_total{model="",outcome="rejected",status="404"}') == 1
    assert await site.metric(f'fleetpulse_proxy_tokens_total{{direction="output",model="{MODEL}"}}') == 16
    assert await site.metric(f"gen_ai_server_request_duration_seconds_count{{{labels}}}") == 2
    assert await site.metric(f"gen_ai_server_time_to_first_token_seconds_count{{{labels}}}") == 1
    assert await site.metric(f"gen_ai_server_time_per_output_token_seconds_count{{{labels}}}") == 1
    async with site.session.get(f"{site.url}/metrics") as answer:
        assert "made-up" not in await answer.text()


def test_the_bounds_are_those_of_vllm() -> None:
    assert (len(DURATION_BOUNDS), len(FIRST_TOKEN_BOUNDS), len(PER_TOKEN_BOUNDS)) == (21, 22, 19)
    for bounds in (DURATION_BOUNDS, FIRST_TOKEN_BOUNDS, PER_TOKEN_BOUNDS):
        assert sorted(set(bounds)) == list(bounds)


async def test_at_the_end_requests_under_way_are_finished(site) -> None:
    stop = await site.start()
    await site.worker(await site.engine(step_seconds=0.02))
    await site.routed(1)
    requests = [asyncio.create_task(site.chat(stream=True, max_tokens=50, ignore_eos=True)) for _ in range(5)]

    async def all_under_way() -> bool:
        return await site.metric("fleetpulse_proxy_requests_in_flight") == 5

    await site.until(all_under_way, "the requests under way")
    stop.set()
    for status, body in await asyncio.gather(*requests):
        assert (status, body.endswith(b"data: [DONE]\n\n")) == (200, True)
    with pytest.raises(aiohttp.ClientConnectionError):
        await site.chat()
    assert len(await site.usage(5)) == 5


async def test_requests_that_do_not_end_are_cut_off_and_told(site) -> None:
    stop = await site.start(drain_seconds=0.2)
    await site.worker(await site.engine(step_seconds=0.05))
    await site.routed(1)
    request = asyncio.create_task(site.chat(stream=True, max_tokens=1000, ignore_eos=True))

    async def is_under_way() -> bool:
        return await site.metric("fleetpulse_proxy_requests_in_flight") == 1

    await site.until(is_under_way, "the request under way")
    await asyncio.sleep(0.1)
    stop.set()
    status, body = await request
    assert (status, b"being stopped" in body, b"[DONE]" in body) == (200, True, False)
    (record,) = await site.usage(1)
    assert record.outcome == "broken"


@pytest.fixture
def command(site, tmp_path):
    """Run `fleetpulse proxy` with the site's settings."""
    children = []

    def start(*options: str, **settings: str) -> Child:
        site.port = free_port()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEETPULSE_")} | {
            "FLEETPULSE_PROXY_PORT": str(site.port),
            "FLEETPULSE_KAFKA_BOOTSTRAP": site.stream.bootstrap,
            "FLEETPULSE_DATABASE_URL": site.database.url.get_secret_value(),
            **settings,
        }
        arguments = [sys.executable, "-m", "fleetpulse", "proxy", *options]
        child = Child("proxy", arguments, tmp_path / "proxy.log", environment)
        child.start()
        children.append(child)
        return child

    yield start
    for child in children:
        child.stop(timeout_seconds=20)


async def test_the_command_serves_logs_each_request_and_ends_in_order(site, command) -> None:
    proxy = command()
    await site.until(site.is_ready, "the proxy to be ready")
    await site.worker(await site.engine())
    await site.routed(1)
    assert (await site.chat(stream=True, headers={"X-Request-Id": "req-1"}))[0] == 200
    assert (await site.chat(model="none", headers={"X-Request-Id": "req-2"}))[0] == 404
    proxy.stop()
    assert proxy.exit_status == 0
    lines = [json.loads(line) for line in proxy.log_file.read_text().splitlines()]
    requests = {line["correlation_id"]: line for line in lines if line["message"] == "request"}
    first = requests["req-1"]
    assert (first["outcome"], first["completion_tokens"], first["model"]) == ("completed", 8, MODEL)
    assert (requests["req-2"]["status"], requests["req-2"]["outcome"]) == (404, "rejected")
    assert site.key not in proxy.log_file.read_text()
    assert "hello there" not in proxy.log_file.read_text()
    assert len(await site.usage(1)) == 1


async def test_several_processes_share_a_port_and_each_has_its_metrics(site, command) -> None:
    metrics_port = free_port()
    proxy = command("--processes", "2", FLEETPULSE_PROXY_METRICS_PORT=str(metrics_port))
    await site.until(site.is_ready, "the proxy to be ready")
    await site.worker(await site.engine())

    def own(process: int) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port + process}/metrics", timeout=5) as answer:
            return answer.read().decode()

    async def all_routed() -> bool:
        try:
            texts = [await asyncio.to_thread(own, process) for process in (0, 1)]
        except urllib.error.HTTPError as error:
            # The error holds the connection.
            error.close()
            return False
        except OSError:
            return False
        return all('fleetpulse_proxy_workers{are="serving"} 1.0' in text for text in texts)

    await site.until(all_routed, "both processes to know the worker")
    served = [0.0, 0.0]
    for _ in range(20):
        # A new connection each time: the kernel chooses the process.
        await site.chat(headers={"Connection": "close"})
        if min(served := [completed(await asyncio.to_thread(own, process)) for process in (0, 1)]):
            break
    assert min(served) > 0
    # A process that is killed is brought back; the other serves in the meantime.
    pids = children_of(proxy.pid)
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGKILL)
    await site.until(
        lambda: len(children_of(proxy.pid)) == 2 and pids[0] not in children_of(proxy.pid), "a new process"
    )
    await site.until(all_routed, "both processes to know the worker")
    assert (await site.chat(headers={"Connection": "close"}))[0] == 200
    proxy.stop(timeout_seconds=20)
    assert proxy.exit_status == 0
    await site.until(lambda: not any(is_there(pid) for pid in pids), "no process to be left")


def completed(text: str) -> float:
    found = re.search(r'fleetpulse_proxy_requests_total\{.*outcome="completed".*\} (\S+)', text)
    return float(found[1]) if found else 0.0


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123
        return [int(child) for child in file.read().split()]


def is_there(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")  # noqa: PTH110


async def test_a_taken_port_is_said_in_one_line(site, command) -> None:
    proxy = command()
    await site.until(site.is_ready, "the proxy to be ready")
    taken = site.port
    second = command(FLEETPULSE_PROXY_PORT=str(taken))
    await site.until(lambda: not second.running, "the second to end")
    assert second.exit_status == 1
    said = second.log_file.read_text().splitlines()
    assert f"fleetpulse: cannot listen on 127.0.0.1:{taken}: Address already in use" in said
    proxy.stop()


async def test_it_does_not_serve_with_the_parser_that_is_less_strict(site, command) -> None:
    proxy = command(AIOHTTP_NO_EXTENSIONS="1")
    await site.until(lambda: not proxy.running, "the command to end")
    assert proxy.exit_status == 2
    assert proxy.log_file.read_text().startswith("fleetpulse: aiohttp runs without its compiled HTTP parser")


async def test_several_processes_need_a_port_that_is_named(site, command) -> None:
    proxy = command("--processes", "2", FLEETPULSE_PROXY_PORT="0")
    await site.until(lambda: not proxy.running, "the command to end")
    assert proxy.exit_status == 2
    assert proxy.log_file.read_text().startswith("fleetpulse: FLEETPULSE_PROXY_PORT: several processes need one port")


async def test_usage_that_is_left_at_the_end_is_sent_at_the_next_start(site, broker, tmp_path) -> None:
    folder = tmp_path / "left"
    stop = await site.start(usage_dir=folder)
    await site.worker(await site.engine())
    await site.routed(1)
    broker.stop()
    assert (await site.chat())[0] == 200
    stop.set()
    await site.until(lambda: list(folder.glob("usage-*.jsonl")), "the file")
    broker.start()
    await site.start(usage_dir=folder)
    assert {(record.completion_tokens, record.record_id[-2:]) for record in await site.usage(1)} == {(8, "-1")}
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_no_write_waits_for_an_acknowledgement(new_loop, until) -> None:
    """On neither side of the proxy: a small write that waits for the one before it waits for 40 ms."""

    async def options() -> list[int]:
        clients = []

        class Quiet(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                clients.append(transport)

        listener = await listen(Quiet, "127.0.0.1", 0, shared=False)
        pool = Pool(idle_seconds=1, idle_most=1, connect_timeout_seconds=5)
        engine = await pool.connect(Address("127.0.0.1", listener.port, False, "", "engine"))
        try:
            await until(lambda: clients, "the connection")
            return [
                transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                for transport in (engine.transport, clients[0])
            ]
        finally:
            engine.transport.abort()
            listener.close()
            for transport in clients:
                transport.abort()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert all(runner.run(options()))


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_clients_that_come_at_once_are_all_taken_in_one_turn(new_loop) -> None:
    """Not one a turn: a busy process has few turns."""

    async def turns() -> int:
        made = []

        class Quiet(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                made.append(transport)

        listener = await listen(Quiet, "127.0.0.1", 0, shared=False)
        clients = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(100)]
        count = 0
        while len(made) < len(clients) and count < 1_000:
            await asyncio.sleep(0)
            count += 1
        listener.close()
        for end in (*made, *clients):
            end.close()
        await asyncio.sleep(0.05)
        return count

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(turns()) < 30


def test_a_full_spool_drops_the_oldest_and_counts_it() -> None:
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    spool = Spool(None, 3, registry)
    for number in range(5):
        spool.add(
            UsageRecord(
                *(f"r-{number}", "id", 1, time.time_ns(), "i", "w", "o", "k", "m", MODEL, "/v1/completions", False),
                *("completed", 200, 0.1, None, 1, 2, None, "engine"),
            )
        )
    assert len(spool) == 3
    assert registry.get_sample_value("fleetpulse_proxy_usage_records_dropped_total") == 2
