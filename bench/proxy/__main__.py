"""The proxy beside other gateways, on the same stub engine and in turns: make bench-proxy (QUICK=1 for under four
minutes, once the peers are installed).

Prints a table and writes bench/results/proxy.json. A gateway that cannot run is named, and its figures are null.
"""

import asyncio
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import fleet
import peers
import psutil
import uvloop
from cells import requests_cell, streams_cell
from figures import DIRECT, OURS, Figures, Requests, Streams, ratio
from load import Target

from fleetpulse.local.ports import free_port
from fleetpulse.local.processes import Child, StartError

QUICK = os.environ.get("QUICK") == "1"
ROUNDS = 2 if QUICK else 5
SECONDS = 0.6 if QUICK else 2.0
PROBES = 20 if QUICK else 60
ENGINES = 2
# Pauses between an engine's steps in milliseconds, by connections: more events a second with more streams, but never so
# many that a gateway or the client falls behind. What comes late comes several at a time, and costs less.
STEPS = {1: 5, 32: 10, 200: 50, 1_000: 200}
# LiteLLM would fall behind: it gets fewer events, and no more connections.
SLOW, SLOW_STEPS = "litellm", {1: 20, 32: 100}
# Where the figures that are one number are taken.
AT = 32
RESULTS = Path(__file__).parents[1] / "results" / "proxy.json"
OPEN_FILES = 16_384


async def measure(folder: Path) -> tuple[Figures, list[str]]:
    """All rounds, and what could not take part."""
    ports = [free_port() for _ in range(ENGINES)]
    with ExitStack() as stack:
        stub = (sys.executable, str(Path(__file__).with_name("stub_engine.py")), *map(str, ports))
        engine = Child("engine", stub, folder / "engine.log")
        engine.start()
        stack.callback(engine.stop)
        engine.wait_until(lambda: all(map(peers.accepts, ports)), 20)
        targets, missing = await asyncio.to_thread(start_peers, stack, folder, ports)
        async with fleet.proxy(folder, ports) as ours:
            key = f"Authorization: Bearer {ours.key}\r\n"
            targets.insert(0, Target(OURS, ours.port, ours.child.pid, key))
            figures, behind = await rounds(targets, Target(DIRECT, ports[0]))
            return figures, missing + behind


def start_peers(stack: ExitStack, folder: Path, ports: list[int]) -> tuple[list[Target], list[str]]:
    """Those that run, and a line for each of the others."""
    targets, missing = [], []
    for name in peers.PEERS:
        try:
            child, port = peers.start(name, folder, ports)
        except (peers.PeerError, StartError) as error:
            missing.append(f"{name} takes no part: {error}")
            continue
        stack.callback(child.stop)
        targets.append(Target(name, port, child.pid))
    return targets, missing


async def rounds(targets: list[Target], engine: Target) -> tuple[Figures, list[str]]:
    """All cells, and a line for each that could not be measured."""
    streams: Streams = defaultdict(list)
    requests: Requests = defaultdict(list)
    behind: list[str] = []
    everyone = [engine, *targets]
    for target in targets:
        await requests_cell(target, 32, 0.5)
    for number in range(ROUNDS):
        for connections in STEPS:
            # Each begins once.
            turn = number % len(everyone)
            for target in everyone[turn:] + everyone[:turn]:
                steps = SLOW_STEPS if target.name == SLOW else STEPS
                if connections not in steps:
                    continue
                try:
                    await measure_cell(target, engine, connections, steps[connections], streams, requests)
                except (TimeoutError, ConnectionError, psutil.NoSuchProcess) as error:
                    # One that does not keep up, or has gone: nothing can be said about what an event costs it.
                    behind.append(f"{target.name} at {connections} in round {number + 1}: {error!r}")
        print(f"round {number + 1} of {ROUNDS}", flush=True)
    return Figures(streams, requests), behind


async def measure_cell(
    target: Target, engine: Target, connections: int, step: int, streams: Streams, requests: Requests
) -> None:
    cell = (target.name, connections)
    streams[cell].append(await streams_cell(target, engine, connections, step, SECONDS, PROBES))
    if target is not engine:
        requests[cell].append(await requests_cell(target, connections, SECONDS))


def result_of(figures: Figures, missing: list[str]) -> dict[str, object]:
    def events(peer: str, connections: int = AT) -> float | None:
        return ratio(figures.event_microseconds(OURS, connections), figures.event_microseconds(peer, connections))

    def requests(peer: str, connections: int = AT) -> float | None:
        return ratio(figures.request_microseconds(OURS, connections), figures.request_microseconds(peer, connections))

    def added(peer: str, connections: int = 1) -> float | None:
        return ratio(figures.first_token_added_ms(OURS, connections), figures.first_token_added_ms(peer, connections))

    names = [OURS, *peers.PEERS]
    return {
        "frame_cpu_vs_vllm_router": events("vllm-router"),
        "frame_cpu_vs_litellm": events("litellm"),
        "frame_cpu_vs_nginx": events("nginx"),
        "request_cpu_vs_vllm_router": requests("vllm-router"),
        "request_cpu_vs_litellm": requests("litellm"),
        "ttft_added_vs_nginx": added("nginx"),
        "ttft_added_vs_vllm_router": added("vllm-router"),
        "rss_per_stream_bytes": figures.rss_per_stream_bytes(OURS, figures.connections[-1]),
        "by_connections": {
            str(connections): {
                "frame_cpu_vs_vllm_router": events("vllm-router", connections),
                "frame_cpu_vs_nginx": events("nginx", connections),
                "request_cpu_vs_vllm_router": requests("vllm-router", connections),
                "ttft_added_vs_nginx": added("nginx", connections),
                "ttft_added_vs_vllm_router": added("vllm-router", connections),
                "gateways": {name: cell_figures(figures, name, connections) for name in names},
            }
            for connections in figures.connections
        },
        "late_first_tokens": {name: figures.bumps(name) for name in (*names, DIRECT)},
        "noisy": figures.noisy(),
        "missing": missing,
    }


def cell_figures(figures: Figures, name: str, connections: int) -> dict[str, float | None]:
    return {
        "frame_microseconds": figures.event_microseconds(name, connections),
        "request_microseconds": figures.request_microseconds(name, connections),
        "requests_per_second": figures.requests_per_second(name, connections),
        "ttft_added_ms": figures.first_token_added_ms(name, connections),
        "ttft_p99_ms": figures.first_token_p99_ms(name, connections),
        "rss_per_stream_bytes": figures.rss_per_stream_bytes(name, connections),
    }


def show(figures: Figures, result: dict[str, object]) -> None:
    columns = ("µs/frame", "µs/request", "requests/s", "TTFT +ms", "p99 ms", "B/stream")
    print(f"\n{'connections':>11} {'gateway':14}" + "".join(f"{column:>12}" for column in columns))
    for connections in figures.connections:
        for name in (OURS, *peers.PEERS):
            values = cell_figures(figures, name, connections)
            if values["frame_microseconds"] is not None:
                places = (1, 1, 0, 3, 2, 0)
                shown = (f"{value or 0.0:12.{count}f}" for value, count in zip(values.values(), places, strict=True))
                print(f"{connections:11} {name:14}" + "".join(shown))
    print()
    for name, value in result.items():
        if name != "by_connections":
            print(f"{name:32} {value if not isinstance(value, float) else round(value, 3)}")


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}"


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, OPEN_FILES), hard), hard))
    started = time.perf_counter()
    result: dict[str, object] = {
        "command": "QUICK=1 make bench-proxy" if QUICK else "make bench-proxy",
        "machine": machine(),
        "python": platform.python_version(),
        "load_average_at_the_start": os.getloadavg()[0],
        "rounds": ROUNDS,
        "seconds_each": SECONDS,
        "peers": {**peers.VERSIONS},
    }
    folder = Path(tempfile.mkdtemp(prefix="fleetpulse-bench-"))
    try:
        # The database server runs as another account under root.
        folder.chmod(0o755)
        figures, missing = uvloop.run(measure(folder))
        result |= result_of(figures, missing)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result["took_seconds"] = time.perf_counter() - started
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    show(figures, result)


if __name__ == "__main__":
    main()
