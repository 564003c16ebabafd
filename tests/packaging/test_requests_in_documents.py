"""Every request in the documents: a shell runs its block with a ``curl`` that writes down what it is told, and the
services' own routes and readers say whether they would take it.
"""

import argparse
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from prometheus_client import CollectorRegistry

from agent import http as agent
from collector.door import Door
from control.api.application import all_endpoints
from control.api.problems import ProblemError
from control.api.validation import query_values
from control.providers.mock import server as mock_cloud
from control.providers.mock.messages import Faults, Options
from fleetpulse.http import add_health_endpoints
from fleetpulse.local.mock_engine import server as mock_engine
from fleetpulse.stream import heartbeat
from fleetpulse.stream.errors import MessageError
from proxy.handler import MODELS
from proxy.pipeline import ENGINE_PATHS

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
KEY = "of-the-reader"
# Keeps its arguments, and answers what a block goes on with.
CURL = f"""#!/bin/sh
{{ printf '%s\\0' "$@"; printf '\\001'; }} >>"$ASKED"
echo '{{"key": "{KEY}"}}'
"""
# What the page itself shows to be refused.
REFUSED = {"/gpu/activity?window_s=0&granularity=week"}
INLINE = re.compile(r"`(GET|POST|PUT|PATCH|DELETE) (/[^` ]*)`")
Routes = set[tuple[str, str]]
ENDPOINTS = all_endpoints()


@dataclass(frozen=True)
class Request:
    """What curl was told."""

    method: str
    port: int | None
    target: str
    headers: Mapping[str, str]
    body: str

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


def blocks(text: str) -> Iterator[str]:
    """What has a curl in it: what is typed after a prompt in a block, all of one without, and what is in a sentence."""
    for depth in (8, 4):  # those of lists first
        indented = re.compile(rf"(?<=\n\n)((?: {{{depth}}}.*\n|\n(?= {{{depth}}}))+)")
        for block in indented.findall(text):
            typed = re.findall(r"^ +\$ ((?:.*\\\n)*.*\n)", block, re.MULTILINE)
            if "curl " in block:
                yield "".join(typed) or block
        text = indented.sub("", text)
    yield from re.findall(r"`(curl [^`]+)`", text)


def told(arguments: list[str]) -> Request:
    parser = argparse.ArgumentParser()
    for switch in "siN":
        parser.add_argument(f"-{switch}", action="store_true")
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d")
    parser.add_argument("--json")
    parser.add_argument("url")
    given = parser.parse_args(arguments)
    url = urlsplit(given.url if "//" in given.url else f"http://{given.url}")
    headers = {name: value.strip() for name, _, value in (header.partition(":") for header in given.H)}
    if given.json is not None:
        headers["Content-Type"] = "application/json"
    body = given.json if given.json is not None else given.d
    target = url.path + (f"?{url.query}" if url.query else "")
    return Request("GET" if body is None else "POST", url.port, target, headers, body or "")


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Request]]:
    """Runs a block in a folder that looks like a checkout in use; what it asked."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / ".fleetpulse").mkdir()
    (folder / ".fleetpulse" / "fleetpulse.json").write_text(json.dumps({"admin_key": KEY}))
    subprocess.run([ROOT / "compose" / "secrets.sh", folder / "compose" / "secrets"], check=True, capture_output=True)
    programs = folder / "programs"
    programs.mkdir()
    (programs / "curl").write_text(CURL)
    (programs / "curl").chmod(0o755)
    asked = folder / "asked"
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "ASKED": str(asked),
        **dict.fromkeys(("KEY", "ADMIN", "token"), KEY),
    }

    def run(block: str) -> list[Request]:
        asked.write_text("")
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=environment, check=True, capture_output=True
        )
        return [told(each.split("\0")[:-1]) for each in asked.read_text().split("\1")[:-1]]

    return run


def pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{[^}]*\}", r"[^/]+", path))


def added(add: Callable[[web.Application], Any]) -> Routes:
    application = web.Application()
    add(application)
    return listed(application)


def listed(application: web.Application) -> Routes:
    return {(route.method, route.resource.canonical) for route in application.router.routes() if route.resource}


def service_routes() -> dict[int, Routes]:
    """The routes of each service, by its usual port; nothing is started."""
    nobody = cast(Any, None)
    health = added(lambda application: add_health_endpoints(application, CollectorRegistry(), dict))
    engine = {("POST", path) for path in ENGINE_PATHS}
    return {
        8000: health | engine | {("GET", MODELS), ("GET", f"{MODELS}/{{name}}")},
        8001: {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS},
        8002: health | added(Door(nobody, (), 1, nobody).add_routes),
        8003: listed(agent.application(CollectorRegistry(), nobody, dict)),
        8010: listed(mock_cloud.application(nobody)),
    }


ROUTES = service_routes()


def wrong(request: Request) -> str | None:
    """Why the service would refuse a request; None when it would not."""
    if request.port not in ROUTES:
        return f"there is no service on port {request.port}"
    routes = {path for method, path in ROUTES[request.port] if method == request.method}
    if not any(pattern(path).fullmatch(request.path) for path in routes):
        return f"port {request.port} has no {request.method} {request.path}"
    if request.port != 8010 and request.path not in ("/readyz", "/healthz", "/metrics"):
        credential = request.headers.get("Authorization", "")
        if not re.fullmatch(rf"Bearer (?:{KEY}|fp[aw]-\w+)", credential):
            return f"there is no credential in {credential!r}"
    try:
        READERS[request.port](request)
    except (ValueError, MessageError, ProblemError, json_format.ParseError) as error:
        return f"{request.path}: {error}"
    return None


def read_by_control(request: Request) -> None:
    endpoint = next(
        each for each in ENDPOINTS if each.method == request.method and pattern(each.path).fullmatch(request.path)
    )
    query_values(make_mocked_request(request.method, request.target), endpoint.query)
    if endpoint.has_body:
        endpoint.body.model_validate_json(request.body)


def read_by_the_door(request: Request) -> None:
    if request.path == "/v1/metrics":
        json_format.Parse(request.body, ExportMetricsServiceRequest())
    elif request.body:
        heartbeat.decode(request.body.encode())


def read_by_the_cloud(request: Request) -> None:
    if request.path.endswith("/faults"):
        faults = msgspec.json.decode(request.body, type=Faults)
        msgspec.convert(faults.options, Options)
    elif request.body:
        msgspec.convert(msgspec.json.decode(request.body), Options)


def read_by_the_proxy(request: Request) -> None:
    if request.body and not {"model", "messages"} <= json.loads(request.body).keys():
        raise ValueError("model or messages are missing")


READERS: Mapping[int, Callable[[Request], None]] = {
    8000: read_by_the_proxy,
    8001: read_by_control,
    8002: read_by_the_door,
    8003: lambda _: None,
    8010: read_by_the_cloud,
}


@pytest.mark.parametrize("page", [page.relative_to(ROOT).as_posix() for page in PAGES if "curl " in page.read_text()])
def test_every_request_of_a_page_would_be_taken(page: str, ask: Callable[[str], list[Request]]) -> None:
    text = (ROOT / page).read_text()
    found = [request for block in blocks(text) for request in ask(block)]
    assert len(found) == text.count("curl ")
    assert {request.target for request in found if wrong(request)} == {
        request.target for request in found if request.target in REFUSED
    }, [wrong(request) for request in found]


def test_every_endpoint_that_a_page_names_is_there() -> None:
    routes = set().union(*ROUTES.values(), listed(mock_engine.application(cast(Any, None))))
    missing = [
        f"{page.relative_to(ROOT)}: {method} {path}"
        for page in (*PAGES, ROOT / "ARCHITECTURE.md")
        for method, path in INLINE.findall(page.read_text())
        if not any(method == one and pattern(route).fullmatch(path.partition("?")[0]) for one, route in routes)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("curl -H 'Authorization: Bearer fp_' http://127.0.0.1:8001/workers", "no credential"),
        (f"curl -H 'Authorization: Bearer {KEY}' http://127.0.0.1:8001/everything", "no GET /everything"),
        (f"curl -H 'Authorization: Bearer {KEY}' 'http://127.0.0.1:8001/usage?by=key'", "unprocessable|unknown|wrong"),
        (
            f"curl -H 'Authorization: Bearer {KEY}' http://127.0.0.1:8002/v1/metrics --json '{{\"resource\": 1}}'",
            "field",
        ),
        ("curl localhost:8010/preset -d '{\"burns\": true}'", "burns"),
        ("curl localhost:80/preset", "port 80"),
    ],
)
def test_a_request_that_would_be_refused_is_noticed(
    command: str, fault: str, ask: Callable[[str], list[Request]]
) -> None:
    (request,) = ask(command)
    assert re.search(fault, wrong(request) or "")
