"""A small real pipeline, and recorded runs that are made up."""

import csv
import json
import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.ports import LOOPBACK, free_port
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.local.processes import Child
from fleetpulse.report import folder as files

BEGAN = 1_800_000_000.0
START_SECONDS = 60


@pytest.fixture(scope="module")
def pipeline() -> Iterator[dict[str, Any]]:
    """What ``fleetpulse.json`` would say of a database, a broker and a collector."""
    # Not pytest's own folder: others may not pass through it, and the server runs as another account under root.
    folder = Path(tempfile.mkdtemp(prefix="fleetpulse-test-"))
    parameters = {"fsync": "off", "full_page_writes": "off", "track_commit_timestamp": "on"}
    broker = EmbeddedBroker(folder / "broker", free_port())
    try:
        with EmbeddedPostgres(folder / "postgres", parameters=parameters) as postgres:
            broker.start()
            try:
                yield from _with_collector(folder, postgres, broker)
            finally:
                broker.stop()
    finally:
        shutil.rmtree(folder)


def _with_collector(folder: Path, postgres: EmbeddedPostgres, broker: EmbeddedBroker) -> Iterator[dict[str, Any]]:
    port = free_port()
    environment = os.environ | {
        "FLEETPULSE_KAFKA_BOOTSTRAP": broker.bootstrap,
        "FLEETPULSE_KAFKA_PARTITIONS": "2",
        "FLEETPULSE_DATABASE_URL": postgres.url(),
        "FLEETPULSE_COLLECTOR_PORT": str(port),
    }
    collector = Child("collector", [sys.executable, "-m", "fleetpulse", "collector"], folder / "log", environment)
    url = f"http://{LOOPBACK}:{port}"
    collector.start()
    try:
        # Until then the database has no tables.
        collector.wait_until(partial(_is_ready, url), START_SECONDS)
        yield {
            "database_url": postgres.url(),
            "kafka_bootstrap": broker.bootstrap,
            "collector_url": url,
            "pids": {"postgres": postgres.pid, "broker": broker.child.pid, "collector": collector.pid},
        }
    finally:
        collector.stop()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        # The error holds the connection.
        error.close()
        return False
    except OSError:
        return False


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run's folder: 1,000 heartbeats that took 1 to 1,000 ms, of 10 agents over 100 s."""

    def make(name: str = "run", *, lost: int = 0, doubled: int = 0, agents: int = 10, unread: int = 0) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        counts = {"sent": 1_000, "acked": 1_000, "failed": 0, "spooled": 0, "bytes_sent": 1}
        simulation = {
            "agents": agents,
            "gpus": 2,
            "interval_seconds": 1.0,
            "heartbeat_interval_seconds": 1.0,
            "behind_seconds": 0.0,
            "began_unix_seconds": BEGAN,
            "ended_unix_seconds": BEGAN + 100,
            "heartbeats": counts,
            "samples": counts,
        }
        about = {
            "name": name,
            "began_unix_seconds": BEGAN,
            "load_average_at_the_start": 0.5,
            "machine": {"cores": 2, "memory_bytes": 2**34, "system": "Linux", "python": "3.11", "fleetpulse": "1"},
            "postgres": "18",
            "latency_until": "committed",
            "unread_messages": unread,
        }
        (folder / files.RUN).write_text(json.dumps(about))
        (folder / files.SIMULATION).write_text(json.dumps(simulation))
        distinct = 2_000 - lost
        stored = [("gpu_samples", 2_000, distinct + doubled, distinct), ("heartbeats", 1_000, 1_000, 1_000)]
        write(folder / files.STORED, files.STORED_COLUMNS, stored)
        latencies = [("heartbeats", BEGAN + number / 10, (number + 1) / 1000) for number in range(1_000)]
        write(folder / files.LATENCIES, files.LATENCY_COLUMNS, latencies)
        lag = [(BEGAN + second, "fleetpulse_collector_lag_messages", second % 7) for second in range(100)]
        read = [(BEGAN + second, "fleetpulse_collector_messages_total", second * 20) for second in range(100)]
        write(folder / files.METRICS, files.METRIC_COLUMNS, lag + read)
        # A quarter of a core; started again in the middle, with the CPU time of a new process.
        used = [
            (BEGAN + second, "collector", 1 if second < 50 else 2, 100 * (second < 50) + second / 4, 2**20 * second, 1)
            for second in range(100)
        ]
        everything = [(BEGAN + second, files.MACHINE, 0, 1.75 * second, 2**33, 100) for second in range(100)]
        write(folder / files.PROCESSES, files.PROCESS_COLUMNS, used + everything)
        return folder

    return make


def write(path: Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """A CSV file."""
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)
