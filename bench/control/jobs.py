"""What the jobs cost: control's CPU time with 10,000 instances whose workers are heard, minus the same without jobs.

Most instances are ready; some are coming up and are checked every few seconds, their agents answering that they are
not ready. Heartbeats are 5 s apart, as docs/agent.md has it for very large fleets.
"""

import os
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import memory_provider
import psutil
import psycopg
from parts import INSTANCES, NO_JOBS, Parts, control_process

from fleetpulse.local.processes import Child

COMING_UP = 100
HEARTBEAT_INTERVAL_SECONDS = 5
# The longest pause between two checks of an instance that is coming up is 5 s, the shortest 1 s: "one interval".
INTERVAL_SECONDS = 1.0
# For half a minute after it has joined the stream control concludes nothing from silence.
WARM_WITH_SECONDS = 35
WARM_WITHOUT_SECONDS = 10
_LATENESS = "fleetpulse_control_job_lateness_seconds_bucket{"


def load_instances(url: str) -> None:
    """The instances of the simulated workers, as transitions would have left them."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("INSERT INTO organizations (slug, name) VALUES ('bench', 'Bench')")
        connection.execute(
            "INSERT INTO instances (instance_id, organization_id, provider, zone, instance_type, state, machine_id,"
            " created_by, created_at) SELECT format('sim-%%s', lpad(n::text, 6, '0')), organization_id, %s, %s,"
            " 'small', CASE WHEN n < %s THEN 'starting' ELSE 'ready' END, format('machine-%%s', n), 'admin',"
            " now() - n * INTERVAL '1 second' FROM organizations, generate_series(0, %s - 1) AS n",
            (memory_provider.NAME, memory_provider.ZONE, COMING_UP, INSTANCES),
        )
        connection.execute("VACUUM ANALYZE instances")


def measure(parts: Parts, seconds: float) -> dict[str, object]:
    """CPU time and lateness, over the same time with jobs and without."""
    with agents(parts), stub_agent() as agent_url:
        without, _ = cpu_share(parts, NO_JOBS, WARM_WITHOUT_SECONDS, seconds)
        with_jobs, lateness = cpu_share(parts, with_provider(parts.folder, agent_url), WARM_WITH_SECONDS, seconds)
    with psycopg.connect(parts.url) as connection:
        states: dict[str, int] = dict(
            connection.execute("SELECT state, count(*) FROM instances GROUP BY state").fetchall()
        )
    return {
        "jobs_core_share": with_jobs["control"] - without["control"],
        "jobs_database_core_share": with_jobs["database"] - without["database"],
        "job_lateness_p99_s": percentile(lateness, 0.99),
        "job_interval_s": INTERVAL_SECONDS,
        "job_items": lateness[float("inf")],
        "core_share_with_jobs": with_jobs,
        "core_share_without_jobs": without,
        "heartbeats_per_second": INSTANCES / HEARTBEAT_INTERVAL_SECONDS,
        "instance_states_at_the_end": states,
    }


def cpu_share(
    parts: Parts, environment: Mapping[str, str], warm_seconds: float, seconds: float
) -> tuple[dict[str, float], dict[float, float]]:
    """Cores that control and the database use, and how many items were claimed how late, once control is warm."""
    with control_process(parts, environment) as (pid, port):
        time.sleep(warm_seconds)
        lateness, before = buckets(port), {"control": cpu_seconds(pid), "database": cpu_seconds(parts.postgres_pid)}
        started = time.perf_counter()
        time.sleep(seconds)
        passed = time.perf_counter() - started
        after = {"control": cpu_seconds(pid), "database": cpu_seconds(parts.postgres_pid)}
        counted = {bound: count - lateness.get(bound, 0.0) for bound, count in buckets(port).items()}
    return {name: (after[name] - before[name]) / passed for name in after}, counted


def cpu_seconds(pid: int) -> float:
    """Of a process and those that it started, also where they have ended."""
    process = psutil.Process(pid)
    times = [process.cpu_times()]
    for child in process.children(recursive=True):
        try:
            times.append(child.cpu_times())
        except psutil.NoSuchProcess:
            continue
    return sum(each.user + each.system for each in times) + times[0].children_user + times[0].children_system


def buckets(port: int) -> dict[float, float]:
    """Cumulative counts of the lateness of all jobs' items by upper bound."""
    found: dict[float, float] = {float("inf"): 0.0}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(_LATENESS):
                bound = float(line.split('le="')[1].split('"')[0])
                found[bound] = found.get(bound, 0.0) + float(line.split()[-1])
    return found


def percentile(cumulative: Mapping[float, float], share: float) -> float:
    """Interpolated within its bucket."""
    wanted, below_bound, below = cumulative[float("inf")] * share, 0.0, 0.0
    for bound, count in sorted(cumulative.items()):
        if count >= wanted and count > below:
            return below_bound + (min(bound, 1e3) - below_bound) * (wanted - below) / (count - below)
        below_bound, below = bound, count
    return float("nan")


def with_provider(folder: Path, agent_url: str) -> dict[str, str]:
    """Settings that install the provider: an entry point in a folder on the path."""
    path = folder / "provider"
    about = path / "bench_memory_provider-0.dist-info"
    about.mkdir(parents=True)
    shutil.copy(memory_provider.__file__, path / "bench_memory_provider.py")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-memory-provider\nVersion: 0\n")
    point = f"{memory_provider.NAME} = bench_memory_provider:MemoryProvider"
    (about / "entry_points.txt").write_text(f"[fleetpulse.providers]\n{point}\n")
    return {
        "PYTHONPATH": str(path),
        "FLEETPULSE_CONTROL_PROVIDERS": memory_provider.NAME,
        "BENCH_MACHINES": str(INSTANCES),
        "BENCH_AGENT_URL": agent_url,
    }


@contextmanager
def agents(parts: Parts) -> Iterator[None]:
    """Heartbeats of a worker for each instance, and hardly any samples."""
    times = ("--interval", "3600", "--heartbeat-interval", str(HEARTBEAT_INTERVAL_SECONDS))
    command = (sys.executable, "-m", "fleetpulse", "simulate", "--agents", str(INSTANCES), *times)
    environment = os.environ | {"FLEETPULSE_KAFKA_BOOTSTRAP": parts.bootstrap}
    simulation = Child("simulate", command, parts.folder / "simulate.log", environment)
    simulation.start()
    try:
        yield
    finally:
        simulation.stop()


class _Agent(BaseHTTPRequestHandler):
    """Lives, and is not ready."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b'{"missing": {"engine": "loads its model"}}'
        self.send_response(200 if self.path == "/healthz" else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_: object) -> None:
        return


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Control that is stopped hangs up."""


@contextmanager
def stub_agent() -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), _Agent)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
