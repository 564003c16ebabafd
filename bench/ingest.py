"""Ingest, measured against its limits in the same run: make bench-ingest (QUICK=1 for under three minutes).

Prints a table and writes bench/results/ingest.json. Ratios are of medians; a part that cannot run is left out and
said, never filled in.
"""

import asyncio
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import psycopg
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from collector.decode import Decoder
from fleetpulse.database import prepare
from fleetpulse.local import apache_kafka
from fleetpulse.local import otlp_messages as otlp
from fleetpulse.local.apache_kafka import ApacheKafka
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.ports import free_port
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.local.processes import Child
from fleetpulse.settings import DatabaseSettings, StreamSettings
from fleetpulse.stream.admin import ensure_topics
from fleetpulse.stream.dictionary import GPU, TABLES
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import METRICS

QUICK = os.environ.get("QUICK") == "1"
WORKERS = 200
MESSAGES_PER_WORKER = 150 if QUICK else 600
ROUNDS = 1 if QUICK else 3
AGENT_SECONDS = 24 if QUICK else 90
MANY_AGENTS_SECONDS = 45 if QUICK else 120
RELATIONS = ("system_samples", "gpu_samples", "engine_samples", "metric_points")
RESULTS = Path(__file__).with_name("results") / "ingest.json"
SAMPLE_NANOSECONDS = 5 * 10**9


def collector(folder: Path, bootstrap: str, url: str, port: int) -> Child:
    environment = os.environ | {
        "FLEETPULSE_KAFKA_BOOTSTRAP": bootstrap,
        "FLEETPULSE_DATABASE_URL": url,
        "FLEETPULSE_COLLECTOR_PORT": str(port),
    }
    return Child("collector", (sys.executable, "-m", "fleetpulse", "collector"), folder / "collector.log", environment)


@contextmanager
def running(child: Child) -> Iterator[None]:
    child.start()
    try:
        yield
    finally:
        child.stop()


def broker(folder: Path) -> ApacheKafka | EmbeddedBroker:
    kind = EmbeddedBroker if apache_kafka.available() else ApacheKafka
    return kind(folder, free_port())


async def produce(stream: StreamSettings) -> int:
    """Messages of many workers, in the order of their times as a backlog has them; returns their number."""
    producer = StreamProducer(stream, "bench")
    await producer.start()
    start = time.time_ns() - (MESSAGES_PER_WORKER + 10) * SAMPLE_NANOSECONDS
    for sequence in range(1, MESSAGES_PER_WORKER + 1):
        at = start + sequence * SAMPLE_NANOSECONDS
        message = otlp.agent_message("worker-0000", sequence, at, numbers=random.Random(sequence))
        names = [f"worker-{number:04d}".encode() for number in range(WORKERS)]
        await asyncio.gather(*(producer.send(METRICS.name, message.replace(names[0], n), n) for n in names))
    await producer.stop()
    return WORKERS * MESSAGES_PER_WORKER


def committed_rows_per_second(folder: Path, bootstrap: str, url: str, messages: int) -> float:
    """From the first commit that is seen to the last: start-up is not ingest."""
    query = "SELECT coalesce(sum(next_offset), 0)::bigint FROM ingest_offsets WHERE topic = %s"
    with (
        psycopg.connect(url, autocommit=True) as connection,
        running(collector(folder, bootstrap, url, free_port())),
    ):
        first: tuple[float, int] | None = None
        while True:
            row = connection.execute(query, (METRICS.name,)).fetchone()
            done = row[0] if row else 0
            if done and first is None:
                first = (time.perf_counter(), done)
            if done >= messages and first is not None:
                break
            time.sleep(0.01)
        seconds, share = time.perf_counter() - first[0], (messages - first[1]) / messages
    return sum(count_rows(url).values()) * share / seconds


def count_rows(url: str) -> dict[str, int]:
    with psycopg.connect(url) as connection:
        return {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in RELATIONS}


def raw_copy_rows_per_second(url: str) -> float:
    """The same rows back into the same tables: one stream of ready-made binary COPY, nothing to decode or decide."""
    rows = sum(count_rows(url).values())
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")  # as the collector does
        data = {}
        for name in RELATIONS:
            with connection.cursor().copy(f"COPY (SELECT * FROM {name}) TO STDOUT (FORMAT binary)") as copy:
                data[name] = b"".join(bytes(block) for block in copy)
            connection.execute(f"TRUNCATE {name}")
        started = time.perf_counter()
        for name, content in data.items():
            with connection.cursor().copy(f"COPY {name} FROM STDIN (FORMAT binary)") as copy:
                for at in range(0, len(content), 2**20):
                    copy.write(content[at : at + 2**20])
        return rows / (time.perf_counter() - started)


def measure_rows(folder: Path) -> dict[str, object]:
    """Kafka to committed rows against the server's own limit."""
    kafka, ours, raw = broker(folder / "broker"), [], []
    with EmbeddedPostgres(folder / "postgres") as postgres:
        kafka.start()
        try:
            stream = StreamSettings(bootstrap=kafka.bootstrap)
            asyncio.run(ensure_topics(stream))
            messages = asyncio.run(produce(stream))
            for number in range(ROUNDS):
                with psycopg.connect(postgres.url(), autocommit=True) as connection:
                    connection.execute(f"CREATE DATABASE round_{number}")
                url = postgres.url(f"round_{number}")
                asyncio.run(prepare(DatabaseSettings(url=url)))
                ours.append(committed_rows_per_second(folder, kafka.bootstrap, url, messages))
                raw.append(raw_copy_rows_per_second(url))
        finally:
            kafka.stop()
    return {
        "committed_rows_vs_raw_copy": statistics.median(ours) / statistics.median(raw),
        "committed_rows_per_second": ours,
        "raw_copy_rows_per_second": raw,
        "broker": type(kafka).__name__,
        "messages": messages,
    }


def measure_decode() -> dict[str, object]:
    """Messages to column arrays, against parsing them and walking the result."""
    messages = [otlp.agent_message("w", n, n * SAMPLE_NANOSECONDS, numbers=random.Random(n)) for n in range(1, 1_001)]
    decoder = Decoder()
    decoder.decode(messages[:2])

    def fast() -> list[np.ndarray]:
        filled = []
        for found in decoder.decode(messages).resources:
            for cells in found.plan.tables:
                out = np.empty((len(cells.rows) * len(found.messages), len(TABLES[cells.table].measures)))
                cells.fill(found.scalars, out)
                filled.append(out)
        return filled

    power = GPU.columns.index("power_watts")
    ours = np.concatenate([out for out in fast() if out.shape[1] == len(GPU.measures)])[:, power]
    theirs = [row["hw.power", ""] for message in messages for key, row in walk_naively(message).items() if key]
    assert sorted(ours.tolist()) == sorted(theirs)
    fast_seconds = [seconds(fast) for _ in range(5)]
    naive_seconds = [seconds(lambda: [walk_naively(message) for message in messages]) for _ in range(3)]
    return {
        "otlp_decode_vs_naive": statistics.median(naive_seconds) / statistics.median(fast_seconds),
        "decode_microseconds": statistics.median(fast_seconds) / len(messages) * 1e6,
        "naive_microseconds": statistics.median(naive_seconds) / len(messages) * 1e6,
    }


def walk_naively(message: bytes) -> dict[str, dict[tuple[str, str], float]]:
    """What one writes first: attributes as a dict for each point, rows by GPU, columns by name and task or state."""
    request = ExportMetricsServiceRequest()
    request.ParseFromString(message)
    rows: dict[str, dict[tuple[str, str], float]] = {}
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                data = metric.gauge if metric.HasField("gauge") else metric.sum
                for point in data.data_points:
                    attributes = {each.key: each.value.string_value for each in point.attributes}
                    value = point.as_double if point.HasField("as_double") else float(point.as_int)
                    told = attributes.get("cpu.mode") or attributes.get("system.memory.state") or ""
                    rows.setdefault(attributes.get("hw.id", ""), {})[metric.name, told] = value
    return rows


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextmanager
def pipeline(folder: Path) -> Iterator[tuple[str, int]]:
    """A broker, a database and a collector that is ready: the broker's address, and the collector's port."""
    kafka, port = broker(folder / "broker"), free_port()
    with EmbeddedPostgres(folder / "postgres") as postgres:
        kafka.start()
        try:
            asyncio.run(ensure_topics(StreamSettings(bootstrap=kafka.bootstrap)))
            consumer = collector(folder, kafka.bootstrap, postgres.url(), port)
            with running(consumer):
                consumer.wait_until(lambda: answers(port, "readyz"), 30)
                yield kafka.bootstrap, port
        finally:
            kafka.stop()


def simulated(folder: Path, bootstrap: str, agents: int, **options: object) -> Child:
    """``fleetpulse simulate``; options are its own."""
    given = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = (sys.executable, "-m", "fleetpulse", "simulate", "--agents", str(agents), *given)
    return Child("simulate", command, folder / "simulate.log", os.environ | {"FLEETPULSE_KAFKA_BOOTSTRAP": bootstrap})


def measure_heartbeats(folder: Path) -> dict[str, object]:
    """1,000 agents, samples every 5 s and heartbeats every second: from a heartbeat's sending to its commit."""
    with pipeline(folder) as (bootstrap, port):
        simulation = simulated(folder, bootstrap, 1000, interval=5, heartbeat_interval=1, duration=AGENT_SECONDS)
        with running(simulation):
            time.sleep(AGENT_SECONDS / 3)  # warm: names known, code compiled, partitions shared
            before = buckets(port)
            time.sleep(AGENT_SECONDS / 2)
            after = buckets(port)
    counted = {bound: after[bound] - before.get(bound, 0.0) for bound in after}
    return {"heartbeat_commit_p99_ms": percentile(counted, 0.99) * 1000, "heartbeats": counted[float("inf")]}


def measure_agents(folder: Path) -> dict[str, object]:
    """How many agents one collector keeps up with: samples every 10 s and heartbeats every 5 s, as docs/agent.md has it
    for very large fleets. Half as many are tried when the lag grows, or when they cannot be simulated fast enough."""
    agents, tried = 10_000, {}
    while agents >= 1_000:
        (folder / str(agents)).mkdir(mode=0o755)
        tried[agents] = lag_seconds(folder / str(agents), agents)
        if is_sustained(tried[agents]):
            break
        agents //= 2
    return {"agents_sustained": agents if agents >= 1_000 else 0, "lag_seconds_by_agents": tried}


def is_sustained(lag: list[float]) -> bool:
    """In the last third, when all are known, less than an interval behind and no further than in the one before."""
    third = len(lag) // 3
    return max(lag[-third:]) < 10 and statistics.mean(lag[-third:]) < statistics.mean(lag[third : 2 * third]) + 1


def lag_seconds(folder: Path, agents: int) -> list[float]:
    """Every second: messages sent and not read, over messages sent in a second."""
    report, lag = folder / "report.json", []
    with pipeline(folder) as (bootstrap, port):
        times = {"interval": 10, "heartbeat_interval": 5, "duration": MANY_AGENTS_SECONDS}
        simulation = simulated(folder, bootstrap, agents, json=report, **times)
        with running(simulation):
            while simulation.running:
                time.sleep(1.0)
                lag.append(gauge(port, "fleetpulse_collector_lag_messages") / (agents * (1 / 10 + 1 / 5)))
    behind = json.loads(report.read_text())["behind_seconds"]
    return [max(each, behind) if behind > 10 else each for each in lag]


def answers(port: int, path: str) -> bool:
    """Whether a service says yes."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}"):
        return True
    return False


def gauge(port: int, name: str) -> float:
    """A metric of the collector, all its series together."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def measure_agent(folder: Path) -> dict[str, object]:
    """The agent on this host with eight GPUs of a stub driver: heartbeats every second, samples every 5 s."""
    stub = Path(__file__).parents[1] / "tests" / "agent" / "nvml_stub.c"
    subprocess.run(
        ("cc", "-shared", "-fPIC", "-pthread", "-o", str(folder / "libnvidia-ml.so.1"), str(stub)), check=True
    )
    kafka = broker(folder / "broker")
    kafka.start()
    try:
        asyncio.run(ensure_topics(StreamSettings(bootstrap=kafka.bootstrap)))
        environment = os.environ | {
            "FLEETPULSE_KAFKA_BOOTSTRAP": kafka.bootstrap,
            "FLEETPULSE_AGENT_PORT": str(free_port()),
            "FLEETPULSE_AGENT_GPUS": "nvml",
            "FLEETPULSE_AGENT_STATE_DIR": str(folder / "state"),
            "LD_LIBRARY_PATH": str(folder),
        }
        agent = Child("agent", (sys.executable, "-m", "fleetpulse", "agent"), folder / "agent.log", environment)
        with running(agent):
            process = psutil.Process(agent.pid)
            time.sleep(15)  # started, connected, and a few samples old
            began, before = time.perf_counter(), process.cpu_times()
            time.sleep(AGENT_SECONDS)
            after = process.cpu_times()
            seconds_passed = time.perf_counter() - began
            used = after.user + after.system - before.user - before.system
            return {"agent_cpu_ratio": used / seconds_passed, "agent_rss_bytes": process.memory_info().rss}
    finally:
        kafka.stop()


def buckets(port: int) -> dict[float, float]:
    """Cumulative counts of the collector's heartbeat histogram by upper bound."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    name = 'fleetpulse_collector_heartbeat_commit_seconds_bucket{le="'
    return {float(line[len(name) :].split('"')[0]): float(line.split()[-1]) for line in lines if line.startswith(name)}


def percentile(cumulative: dict[float, float], share: float) -> float:
    """Interpolated within its bucket."""
    wanted, below_bound, below = cumulative[float("inf")] * share, 0.0, 0.0
    for bound, count in sorted(cumulative.items()):
        if count >= wanted and count > below:
            return below_bound + (min(bound, 1e3) - below_bound) * (wanted - below) / (count - below)
        below_bound, below = bound, count
    return float("nan")


def main() -> None:
    result: dict[str, object] = {
        "command": "QUICK=1 make bench-ingest" if QUICK else "make bench-ingest",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "rounds": ROUNDS,
    }
    result |= measure_decode()
    for measure in (measure_agent, measure_rows, measure_heartbeats, measure_agents):
        # Not a folder of one user's: under root the database server runs as another account.
        with tempfile.TemporaryDirectory(prefix="fleetpulse-bench-") as folder:
            result |= measure(Path(folder))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    for name, value in result.items():
        print(f"{name:32} {value if not isinstance(value, float) else round(value, 3)}")


if __name__ == "__main__":
    main()
