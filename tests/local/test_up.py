"""``fleetpulse up``, from an empty folder, as a user runs it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from fleetpulse.local.state_file import STATE_FILE

pytestmark = pytest.mark.timeout(300)

READY_SECONDS = 90.0
STOP_SECONDS = 20.0


class Stack:
    """A running ``fleetpulse up``."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        self.data_dir = data_dir
        self.output = data_dir.with_suffix(".out")
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fleetpulse", "up", "--data-dir", str(data_dir), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "FLEETPULSE_AGENT_SAMPLE_INTERVAL_SECONDS": "1"},
            )

    def wait_until_up(self) -> dict[str, Any]:
        """What its state file says."""
        deadline = time.monotonic() + READY_SECONDS
        # A stack that was killed leaves its file until the next one begins.
        while self.state().get("pids", {}).get("supervisor") != self.process.pid:
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.1)
        return self.state()

    def state(self) -> dict[str, Any]:
        """What its state file says now; nothing when there is none."""
        try:
            found: dict[str, Any] = json.loads((self.data_dir / STATE_FILE).read_text())
        except FileNotFoundError:
            return {}
        return found

    def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(STOP_SECONDS)


def log_in(state: dict[str, Any]) -> str:
    """The cookie that a browser gets for the admin key."""
    asked = json.dumps({"key": state["admin_key"]}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{state['control_url']}/sessions", data=asked, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        return str(response.headers["Set-Cookie"]).partition(";")[0]


def ask(state: dict[str, Any], path: str, cookie: str = "") -> dict[str, Any]:
    """Control's answer."""
    headers = {"Cookie": cookie} if cookie else {"Authorization": f"Bearer {state['admin_key']}"}
    request = urllib.request.Request(state["control_url"] + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            found: dict[str, Any] = json.load(response)
            return found
    except urllib.error.HTTPError as error:
        # The error holds the connection.
        error.close()
        raise


def rows(state: dict[str, Any], family: str) -> list[dict[str, Any]]:
    """Raw rows of the last five minutes."""
    found: list[dict[str, Any]] = ask(state, f"/{family}/activity?window_s=300&granularity=second")["rows"]
    return found


def worker_ids(state: dict[str, Any]) -> dict[str, str]:
    """Instances that have not ended, by the name of their deployment."""
    names = {each["deployment_id"]: each["name"] for each in ask(state, "/deployments")["deployments"]}
    return {
        names[each["deployment_id"]]: each["instance_id"]
        for each in ask(state, "/instances")["instances"]
        if each["state"] not in {"terminating", "terminated", "archived"}
    }


def chat(state: dict[str, Any]) -> int:
    """Status of a chat completion through the proxy."""
    asked = {"model": "mock-model", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    request = urllib.request.Request(
        f"{state['proxy_url']}/v1/chat/completions",
        data=json.dumps(asked).encode(),
        headers={"Authorization": f"Bearer {state['inference_key']}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        # The error holds the connection.
        error.close()
        return error.code


def newest_sample(state: dict[str, Any]) -> str:
    """Time of the newest row; nothing while control cannot ask the database."""
    try:
        return max(str(row["time"]) for row in rows(state, "system"))
    except OSError:
        return ""


def living(state: dict[str, Any]) -> list[str]:
    """Parts whose process runs."""
    found = {one.pid for one in psutil.process_iter(["status"]) if one.info["status"] != psutil.STATUS_ZOMBIE}
    return [name for name, pid in state["pids"].items() if pid in found]


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Not pytest's own folder: PostgreSQL runs as another account under root, which may not pass through it."""
    folder = Path(tempfile.mkdtemp(prefix="fleetpulse-up-"))
    yield folder / "data"
    shutil.rmtree(folder)


@pytest.fixture
def started(data_dir: Path) -> Iterator[Callable[..., Stack]]:
    """Start stacks that are gone after the test, whatever happens in it."""
    stacks: list[Stack] = []

    def start(*arguments: str) -> Stack:
        stacks.append(Stack(data_dir, *arguments))
        return stacks[-1]

    yield start
    for stack in stacks:
        if stack.process.poll() is None:
            parts = psutil.Process(stack.process.pid).children(recursive=True)
            stack.process.kill()
            stack.process.wait()
            psutil.wait_procs(parts, STOP_SECONDS)


def test_up_shows_this_host_and_simulated_gpus_survives_crashes_and_leaves_nothing_behind(
    data_dir: Path, started: Callable[..., Stack], eventually: Callable[..., None]
) -> None:
    stack = started("--workers", "3")
    state = stack.wait_until_up()
    assert oct((data_dir / STATE_FILE).stat().st_mode)[-3:] == "600"
    assert set(state) == {
        *("control_url", "collector_url", "proxy_url", "admin_key", "inference_key", "worker_token"),
        *("database_url", "kafka_bootstrap", "pids"),
    }
    names = {"supervisor", "postgres", "broker", "collector", "mock-cloud", "control", "proxy"}
    assert set(living(state)) == set(state["pids"]) == names
    workers = worker_ids(state)
    assert set(workers) == {"worker-1", "worker-2", "worker-3"}

    own = [row for row in rows(state, "system") if row["worker_id"] == workers["worker-1"]]
    assert own[-1]["memory_total_bytes"] == psutil.virtual_memory().total
    assert any(0 <= row["cpu_utilization_ratio"] <= 1 for row in own if row["cpu_utilization_ratio"] is not None)
    gpus = {(row["worker_id"], row["gpu_index"]) for row in rows(state, "gpu")}
    simulated = {workers["worker-2"], workers["worker-3"]}
    assert {worker for worker, _ in gpus} <= simulated
    assert len(gpus) >= 2
    eventually(lambda: {row["worker_id"] for row in rows(state, "engine")} == simulated, "engines")
    eventually(lambda: chat(state) == 200, "a chat completion through the proxy", 30)

    doctor = subprocess.run(
        [sys.executable, "-m", "fleetpulse", "doctor"],
        env={**os.environ, "FLEETPULSE_LOCAL_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "has all topics" in doctor.stdout, doctor.stdout + doctor.stderr
    assert "all relations are there" in doctor.stdout

    second = started()
    assert second.process.wait(STOP_SECONDS) == 1
    assert "a stack runs in" in stack.output.read_text()
    assert living(state) == list(state["pids"])

    for crashed in ("collector", "postgres", "broker", "control", "proxy", "mock-cloud"):
        os.kill(state["pids"][crashed], signal.SIGKILL)
        eventually(lambda name=crashed: stack.state()["pids"][name] != state["pids"][name], f"{crashed} is back")
    crashed_at = datetime.now(UTC).isoformat()
    eventually(lambda: newest_sample(stack.state()) > crashed_at, "samples flow again", 60)

    state = stack.state()
    cookie = log_in(state)
    began = time.monotonic()
    assert stack.interrupt() == 0
    assert time.monotonic() - began < STOP_SECONDS
    assert living(state) == []
    assert not (data_dir / STATE_FILE).exists()

    stack = started("--workers", "1")
    again = stack.wait_until_up()
    assert (again["admin_key"], again["database_url"]) == (state["admin_key"], state["database_url"])
    assert min(row["time"] for row in rows(again, "system")) < crashed_at
    assert worker_ids(again) == {"worker-1": workers["worker-1"]}
    assert ask(again, "/sessions", cookie)["actor"] == "admin", "browsers are still logged in"
    assert chat(again) == 503, "the key is the same, and the engines are gone"
    stack.process.kill()
    stack.process.wait()
    eventually(lambda: not living(again), "all parts are gone with their supervisor")

    stack = started("--workers", "1")
    stack.wait_until_up()
    assert stack.interrupt() == 0


@pytest.mark.kafka
def test_up_runs_on_apache_kafka(started: Callable[..., Stack]) -> None:
    stack = started("--workers", "2", "--broker", "apache")
    state = stack.wait_until_up()
    assert {row["worker_id"] for row in rows(state, "gpu")} == {worker_ids(state)["worker-2"]}
    assert stack.interrupt() == 0
    assert living(state) == []


def test_a_stop_while_starting_leaves_nothing_behind(
    data_dir: Path, started: Callable[..., Stack], eventually: Callable[..., None]
) -> None:
    stack = started("--workers", "2")
    eventually(lambda: (data_dir / "ports.json").exists(), "it has begun")
    children = psutil.Process(stack.process.pid).children(recursive=True)
    assert stack.interrupt() == 0
    assert psutil.wait_procs(children, 5)[1] == []


def test_workers_that_do_not_come_up_are_told_with_reasons(
    data_dir: Path, started: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETPULSE_LOCAL_READY_TIMEOUT_SECONDS", "25")
    monkeypatch.setenv("FLEETPULSE_AGENT_SIMULATE_GPU_LOAD", "wrong")
    stack = started("--workers", "2")
    assert stack.process.wait(120) == 1
    output = stack.output.read_text()
    assert "no samples could be queried in time" in output
    assert re.search(r"i-\w+ is (provisioning|booting|installing|starting)", output), output
    assert not (data_dir / STATE_FILE).exists()
