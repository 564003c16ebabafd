"""The gateways that ours is measured against, each in the configuration that costs it least.

Packages are installed into an environment of their own for each, at the versions below, under .test/bench-peers/.
"""

import os
import shutil
import socket
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from fleetpulse.local.ports import free_port
from fleetpulse.local.processes import Child

VERSIONS = {"vllm-router": "vllm-router==0.1.17", "litellm": "litellm[proxy]==1.106.2"}
FOLDER = Path(__file__).parents[2] / ".test" / "bench-peers"
START_SECONDS = 120.0

_NGINX = """
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    tcp_nodelay on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000;
    upstream engines {{
        {servers}
        keepalive 1024;
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        client_body_buffer_size 64k;
        location / {{
            proxy_pass http://engines;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""

_LITELLM = """
model_list:
{models}
litellm_settings:
  telemetry: false
  callbacks: []
general_settings:
  disable_spend_logs: true
"""


class PeerError(Exception):
    """A peer that cannot take part; the message says why."""


def nginx(folder: Path, port: int, engines: Sequence[int]) -> list[str]:
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        raise PeerError("there is no program nginx: apt-get install nginx-light")
    servers = "\n        ".join(f"server 127.0.0.1:{engine};" for engine in engines)
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(folder=folder, servers=servers, port=port))
    return [program, "-p", str(folder), "-c", str(configuration), "-g", "daemon off;"]


def vllm_router(folder: Path, port: int, engines: Sequence[int]) -> list[str]:  # noqa: ARG001
    program = _installed("vllm-router")
    urls = [f"http://127.0.0.1:{engine}" for engine in engines]
    quiet = ("--log-level", "error", "--prometheus-port", str(free_port()))
    where = ("--host", "127.0.0.1", "--port", str(port), "--worker-urls", *urls)
    return [program, *where, "--policy", "round_robin", *quiet]


def litellm(folder: Path, port: int, engines: Sequence[int]) -> list[str]:
    program = _installed("litellm")
    models = "".join(
        f"  - model_name: bench/model\n    litellm_params: {{model: openai/bench/model, "
        f'api_base: "http://127.0.0.1:{engine}/v1", api_key: none}}\n'
        for engine in engines
    )
    configuration = folder / "litellm.yaml"
    configuration.write_text(_LITELLM.format(models=models))
    return [program, "--config", str(configuration), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


def plain_relay(folder: Path, port: int, engines: Sequence[int]) -> list[str]:  # noqa: ARG001
    urls = [f"http://127.0.0.1:{engine}" for engine in engines]
    return [sys.executable, str(Path(__file__).with_name("plain_relay.py")), str(port), *urls]


PEERS: dict[str, Callable[[Path, int, Sequence[int]], list[str]]] = {
    "vllm-router": vllm_router,
    "nginx": nginx,
    "plain aiohttp": plain_relay,
    "litellm": litellm,
}
# LiteLLM without keys and their database, and without asking elsewhere for prices.
_ENVIRONMENT = {
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "PATH": os.environ.get("PATH", os.defpath),
}


def start(name: str, folder: Path, engines: Sequence[int]) -> tuple[Child, int]:
    """A peer that accepts connections, and its port. Raises PeerError, and StartError for one that does not come up."""
    port = free_port()
    child = Child(name, PEERS[name](folder, port, engines), folder / f"{name}.log", _ENVIRONMENT)
    child.start()
    try:
        child.wait_until(lambda: accepts(port), START_SECONDS)
    except BaseException:
        child.kill()
        raise
    return child, port


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _installed(name: str) -> str:
    """The peer's program, installed at its first use."""
    folder = FOLDER / name
    program, stamp = folder / "bin" / name, folder / VERSIONS[name].replace("[", "-").replace("]", "")
    if not stamp.exists():
        print(f"installing {VERSIONS[name]} into {folder}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        pip = (str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        installed = subprocess.run((*pip, VERSIONS[name]), capture_output=True, text=True, check=False)
        if installed.returncode:
            raise PeerError(f"pip cannot install {VERSIONS[name]}: {installed.stderr.strip()[-300:]}")
        stamp.touch()
    return str(program)
