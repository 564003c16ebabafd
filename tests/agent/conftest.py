"""What the agent's tests share: a stub NVIDIA driver, a stub of the collector's HTTP door, and a stub engine."""

import asyncio
import ctypes
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pynvml
import pytest
from aiohttp import web

from fleetpulse.http import serving

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stub, compiled. LD_LIBRARY_PATH with its folder has any process load it as the driver's library."""
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = HERE / "nvml_stub.c"
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-pthread",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        str(library),
        str(source),
    ]
    subprocess.run(command, check=True)
    return library


@dataclass
class NvmlState:
    """The stub's GPUs. set() replaces readings, which the stub sees at its next call."""

    path: Path
    lines: dict[str, str] = field(default_factory=dict)

    def set(self, **readings: str | int) -> None:
        """``gpu_0__power=1`` becomes the line ``gpu.0.power 1``; the old value of a name is forgotten."""
        for name, value in readings.items():
            first, *rest = name.split("__", 1)
            self.lines[".".join([first.replace("_", "."), *rest])] = str(value)
        made = self.path.with_suffix(".new")
        made.write_text("".join(f"{name} {value}\n" for name, value in self.lines.items()))
        made.replace(self.path)


@pytest.fixture
def nvml(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvmlState:
    """pynvml with the stub as its library, and two GPUs."""
    state = NvmlState(tmp_path / "nvml-state")
    state.set(gpus=2)
    monkeypatch.setenv("NVML_STUB_STATE", str(state.path))
    _forget_library(monkeypatch)
    monkeypatch.setattr(pynvml, "CDLL", lambda _: ctypes.CDLL(str(nvml_library)))
    return state


@pytest.fixture
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """pynvml on a host without the driver's library."""

    def absent(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    _forget_library(monkeypatch)
    monkeypatch.setattr(pynvml, "CDLL", absent)


def _forget_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})


@dataclass
class Door:
    """The collector's HTTP door as seen by an agent. ``statuses``: answers to give next, before 200 for ever."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    heartbeats: list[bytes] = field(default_factory=list)
    metrics: list[bytes] = field(default_factory=list)
    authorizations: set[str] = field(default_factory=set)

    async def receive(self, request: web.Request) -> web.Response:
        """Keep a message, unless another answer is due."""
        body = await request.read()
        self.authorizations.add(request.headers.get("Authorization", ""))
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        kept = self.heartbeats if request.path == "/internal/worker/heartbeat" else self.metrics
        kept.append(body)
        return web.Response(status=202 if request.path.startswith("/internal") else 200)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    """An HTTP door that takes everything."""
    stub = Door()
    application = web.Application()
    application.router.add_post("/internal/worker/heartbeat", stub.receive)
    application.router.add_post("/v1/metrics", stub.receive)
    async with serving(application, "127.0.0.1", 0) as port:
        stub.url = f"http://127.0.0.1:{port}"
        yield stub


@dataclass
class StubEngine:
    """An engine's API server. ``page`` is what /metrics shows, ``models`` what /v1/models lists."""

    url: str = ""
    page: str = ""
    models: list[str] = field(default_factory=lambda: ["meta-llama/Llama-3.1-8B-Instruct"])
    status: int = 200
    delay_seconds: float = 0.0

    async def metrics(self, _: web.Request) -> web.Response:
        """The page, or the trouble that is set."""
        await asyncio.sleep(self.delay_seconds)
        return web.Response(text=self.page, status=self.status)

    async def list_models(self, _: web.Request) -> web.Response:
        """In OpenAI's shape."""
        return web.json_response({"object": "list", "data": [{"id": model} for model in self.models]})


@pytest.fixture
async def engine() -> AsyncIterator[StubEngine]:
    """An engine that shows the recorded page of a current vLLM."""
    stub = StubEngine(page=(HERE / "fixtures" / "vllm_current.txt").read_text())
    application = web.Application()
    application.router.add_get("/metrics", stub.metrics)
    application.router.add_get("/v1/models", stub.list_models)
    async with serving(application, "127.0.0.1", 0) as port:
        stub.url = f"http://127.0.0.1:{port}"
        yield stub


@pytest.fixture
def fixture_page() -> Callable[[str], str]:
    """A recorded /metrics page by its file name."""
    return lambda name: (HERE / "fixtures" / name).read_text()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Wait until a condition holds, for at most ten seconds."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - conditions of all kinds
                await asyncio.sleep(0.01)

    return wait


@pytest.fixture(autouse=True)
def _no_foreign_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests see the defaults, and keep their state to themselves."""
    for name in list(os.environ):
        if name.startswith(("FLEETPULSE_", "WORKER_SIMULATE_")) and not name.startswith("FLEETPULSE_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
