"""Simulated agents on a real pipeline, recorded and reported on: nothing is lost or doubled, and it would show."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.ports import free_port
from fleetpulse.local.recording import recording
from fleetpulse.local.simulate import Plan, simulate
from fleetpulse.local.simulated_delivery import Counts, SimulatedDelivery
from fleetpulse.local.stored import count, write_stored
from fleetpulse.report import folder as files
from fleetpulse.report import numbers
from fleetpulse.report.main import report
from fleetpulse.report.read import read
from fleetpulse.settings import StreamSettings
from fleetpulse.stream.admin import ensure_topics
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import HEARTBEATS

AGENTS, GPUS = 10, 2


def quiet(_: str) -> None:
    """For progress lines."""


@pytest.fixture(scope="module")
def run_folder(pipeline: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of ten agents for two seconds."""
    folder = tmp_path_factory.mktemp("run")
    stream = StreamSettings(bootstrap=pipeline["kafka_bootstrap"], partitions=2)
    asyncio.run(ensure_topics(stream))
    plan = Plan.checked(AGENTS, 0.5, 0.5, 2, GPUS)
    with recording(folder, "simulate", pipeline, quiet):
        asyncio.run(simulate(plan, stream, asyncio.Event(), tell=quiet, folder=folder))
    return folder


def test_nothing_is_lost_or_doubled_and_the_report_says_so(run_folder: Path) -> None:
    simulation = json.loads((run_folder / files.SIMULATION).read_text())
    acked = simulation["samples"]["acked"]
    assert acked == simulation["samples"]["sent"] >= AGENTS
    table = numbers.rows(read(run_folder))
    assert list(table["stored"]) == list(table["distinct"]) == list(table["expected"])
    assert table["stored"]["gpu_samples"] == acked * GPUS
    for path in report(run_folder):
        assert path.stat().st_size > 0
    page = (run_folder / "report.md").read_text()
    assert "Nothing is lost, and nothing is doubled." in page
    assert "from sending until committed" in page


def test_each_message_has_a_latency_and_each_process_its_use(run_folder: Path) -> None:
    run = read(run_folder)
    assert run.simulation is not None
    told = numbers.latencies(run)
    assert told["messages"]["heartbeats"] == run.simulation["heartbeats"]["acked"]
    assert told["messages"]["samples"] == run.simulation["samples"]["acked"]
    assert (told["p50"] > 0).all()
    assert {"postgres", "broker", "collector", "simulate"} <= set(run.processes["name"])
    assert (run.processes["memory_bytes"] > 2**20).all()


def test_a_planted_loss_and_a_planted_double_are_found(
    run_folder: Path, pipeline: dict[str, Any], recorded: Callable[..., Path]
) -> None:
    simulation = json.loads((run_folder / files.SIMULATION).read_text())
    with psycopg.connect(pipeline["database_url"]) as connection:  # never committed: other tests look at these rows
        connection.execute(
            "DELETE FROM gpu_samples"
            " WHERE (gpu_key, time) = (SELECT gpu_key, time FROM gpu_samples ORDER BY time LIMIT 1)"
        )
        connection.execute("INSERT INTO heartbeats SELECT * FROM heartbeats ORDER BY time LIMIT 1")
        found = count(connection, simulation)
        connection.rollback()
    folder = recorded("planted")
    write_stored(folder / files.STORED, found)
    assert numbers.faults(read(folder)) == [
        "1 rows of heartbeats are there more than once.",
        f"1 of {simulation['samples']['acked'] * GPUS} rows of gpu_samples are lost "
        f"({1 / (simulation['samples']['acked'] * GPUS):.2%}).",
    ]


def test_a_run_whose_database_is_away_is_told_and_is_no_recording(tmp_path: Path) -> None:
    nowhere = "127.0.0.1:1"
    state = {"pids": {}, "database_url": f"postgresql://{nowhere}/none", "collector_url": f"http://{nowhere}"}
    with pytest.raises(ConnectionError, match="database does not answer"), recording(tmp_path, "test", state, quiet):
        pass
    assert not (tmp_path / files.RUN).exists()


def test_a_run_whose_database_has_no_tables_is_told_whom_to_ask(tmp_path: Path, empty_database_url: str) -> None:
    state = {"pids": {}, "database_url": empty_database_url, "collector_url": "http://127.0.0.1:1"}
    simulation = {
        "gpus": 1,
        "began_unix_seconds": 1.0,
        "ended_unix_seconds": 2.0,
        **{stream: {"acked": 1} for stream in ("heartbeats", "samples")},
    }
    with pytest.raises(FileNotFoundError, match="look at the collector's log"), recording(tmp_path, "t", state, quiet):
        (tmp_path / files.SIMULATION).write_text(json.dumps(simulation))
    assert not (tmp_path / files.RUN).exists()


async def test_messages_wait_for_a_broker_that_is_away_and_none_is_given_up(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / "broker", free_port())
    await asyncio.to_thread(broker.start)
    try:
        settings = StreamSettings(bootstrap=broker.bootstrap, partitions=2, request_timeout_seconds=1)
        await ensure_topics(settings)
        producer, counts = StreamProducer(settings, "test"), Counts()
        await producer.start()
        try:
            delivery = SimulatedDelivery(producer, patience_seconds=20)
            async with delivery.delivering():
                await delivery.send(HEARTBEATS.name, b"before", b"key", counts)
                await until(lambda: counts.acked == 1)
                await asyncio.to_thread(broker.stop)
                for _ in range(20):
                    await delivery.send(HEARTBEATS.name, b"meanwhile", b"key", counts)
                await until(lambda: counts.spooled == 20)
                await delivery.send(HEARTBEATS.name, b"behind them", b"key", counts)
                assert counts.spooled == 21
                await asyncio.to_thread(broker.start)
        finally:
            await producer.stop()
        assert (counts.sent, counts.acked, counts.failed) == (22, 22, 0)
    finally:
        await asyncio.to_thread(broker.stop)


async def until(condition: Callable[[], bool]) -> None:
    """Poll until it holds."""
    for _ in range(1_500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("not within 30 s")
