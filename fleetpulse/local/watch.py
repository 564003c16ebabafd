"""Writes down, every second, what each process of the stack uses and what its services tell, until it is ended.

``python -m fleetpulse.local.watch FOLDER PLAN`` is a process of its own: within the one that makes the load, it would
delay what it measures. PLAN is JSON: ``{"pids": {NAME: PID}, "urls": [URL, …]}``.
"""

import contextlib
import csv
import http.client
import json
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil

from fleetpulse.report.folder import COMMITTED, LAG, MACHINE, METRIC_COLUMNS, METRICS, PROCESS_COLUMNS, PROCESSES

INTERVAL_SECONDS: Final = 1.0
_TIMEOUT_SECONDS: Final = 2.0
# What the report shows of /metrics.
_KEPT: Final = frozenset(
    {
        LAG,
        COMMITTED,
        "fleetpulse_collector_rows_total",
        "fleetpulse_collector_write_failures_total",
        "fleetpulse_collector_dead_letters_total",
        "fleetpulse_proxy_requests_in_flight",
        "fleetpulse_proxy_engine_requests_waiting",
    }
)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a part used: CPU time since its start, and memory now, shared pages counted in part."""

    unix_seconds: float
    pid: int
    cpu_seconds: float
    memory_bytes: int
    processes: int


def usages(pids: Mapping[str, int]) -> dict[str, Usage]:
    """Of each part, with what it started that is no part of its own; parts that are gone are left out."""
    children: defaultdict[int, list[psutil.Process]] = defaultdict(list)
    by_pid: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            by_pid[process.pid] = process
            children[process.ppid()].append(process)
    others = set(pids.values())
    found = {}
    for name, pid in pids.items():
        if pid in by_pid:
            found[name] = _usage([by_pid[pid], *_descendants(pid, children, others)])
    return found


def _descendants(
    pid: int, children: Mapping[int, list[psutil.Process]], others: Container[int]
) -> Iterator[psutil.Process]:
    for child in children.get(pid, ()):
        if child.pid not in others:
            yield child
            yield from _descendants(child.pid, children, others)


def _usage(family: Sequence[psutil.Process]) -> Usage:
    now, cpu_seconds, memory_bytes, processes = time.time(), 0.0, 0, 0
    for process in family:
        # One that ends meanwhile is in the times of its parent, the next time.
        with contextlib.suppress(psutil.NoSuchProcess), process.oneshot():
            times = process.cpu_times()
            memory = process.memory_full_info()
            cpu_seconds += times.user + times.system
            cpu_seconds += times.children_user + times.children_system
            memory_bytes += getattr(memory, "pss", memory.rss)
            processes += 1
    return Usage(now, family[0].pid, cpu_seconds, memory_bytes, processes)


def whole_machine() -> Usage:
    """What everything on the machine uses, ours or not."""
    now, times, memory = time.time(), psutil.cpu_times(), psutil.virtual_memory()
    # Guests' time is in the user's already; what other machines on the same hardware took (steal) is nobody's here.
    busy_seconds = times.user + times.nice + times.system + times.irq + times.softirq
    return Usage(now, 0, busy_seconds, memory.total - memory.available, len(psutil.pids()))


def told(url: str) -> dict[str, float]:
    """The metrics of a service that are kept, all series of a name together; nothing when it does not answer."""
    sums: defaultdict[str, float] = defaultdict(float)
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    except (http.client.HTTPException, OSError):
        return {}
    finally:
        connection.close()
    for line in lines:
        name = line.partition("{")[0].partition(" ")[0]
        if name in _KEPT:
            sums[name] += float(line.rpartition(" ")[2])
    return dict(sums)


def _every_second(ended: threading.Event) -> Iterator[None]:
    due = time.monotonic()
    while not ended.is_set():
        yield
        due = max(due + INTERVAL_SECONDS, time.monotonic())
        ended.wait(due - time.monotonic())


def watch(folder: Path, pids: Mapping[str, int], urls: Sequence[str], ended: threading.Event) -> None:
    """Until ``ended`` is set. Rows are in the files as soon as they are known."""
    with (folder / PROCESSES).open("w", newline="") as processes, (folder / METRICS).open("w", newline="") as metrics:
        uses, tells = csv.writer(processes, lineterminator="\n"), csv.writer(metrics, lineterminator="\n")
        uses.writerow(PROCESS_COLUMNS)
        tells.writerow(METRIC_COLUMNS)
        for _ in _every_second(ended):
            for name, used in {**usages(pids), MACHINE: whole_machine()}.items():
                row = (used.pid, f"{used.cpu_seconds:.2f}", used.memory_bytes, used.processes)
                uses.writerow((f"{used.unix_seconds:.3f}", name, *row))
            for url in urls:
                for metric, value in told(url).items():
                    tells.writerow((f"{time.time():.3f}", metric, f"{value:g}"))
            processes.flush()
            metrics.flush()


def main() -> None:
    """Run until SIGTERM."""
    folder, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    watch(folder, plan["pids"], plan["urls"], ended)


if __name__ == "__main__":
    main()
