"""Live services, Prometheus and Alertmanager: what is served is documented, what dashboards ask has an answer, and the
death of a worker reaches a person.

One stack for all: `fleetpulse up`, an agent that is killed, and the shipped rules with their waits shortened.
"""

import asyncio
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from fleetpulse.local.metric_catalogue import families
from fleetpulse.local.metric_labels import LABELS
from fleetpulse.local.ports import LOOPBACK, free_port
from fleetpulse.local.processes import Child
from fleetpulse.local.state_file import STATE_FILE
from fleetpulse.settings import StreamSettings
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import HEARTBEATS

pytestmark = [pytest.mark.prometheus, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 90.0
MODEL = "mock-model"
VICTIM = "victim"
# A minute is a second; only blindness keeps its own, because control counts as blind for 30 s after its start.
HURRY = 60
UNHURRIED = {"FleetpulsePipelineBlind"}


def until(condition: Callable[[], Any], what: str) -> Any:
    """Poll until there is an answer; a service that is not there yet is waited for."""
    deadline, last = time.monotonic() + WAIT_SECONDS, None
    while time.monotonic() < deadline:
        try:
            if last := condition():
                return last
        except urllib.error.HTTPError as error:
            last = f"status {error.code}"
            error.close()
        except OSError as error:
            last = error
        time.sleep(0.1)
    return pytest.fail(f"not in time: {what}; last: {last!r}")


def get(url: str, key: str = "", body: Any = None) -> str:
    """An answer's text."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=20) as answer:
        return str(answer.read().decode())


class Webhook(BaseHTTPRequestHandler):
    """Keeps what Alertmanager tells."""

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.told.append((self.path, told))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""


@dataclass
class Live:
    """Addresses of everything that runs."""

    state: Mapping[str, Any]
    prometheus: str
    alertmanager: str
    targets: Mapping[str, list[str]]
    """Host and port of each process, by service."""
    told: list[tuple[str, dict[str, Any]]]
    worker: str
    """A worker with GPUs and an engine."""

    def chat(self, stream: bool) -> bool:
        """Have an engine answer."""
        messages = [{"role": "user", "content": "hello"}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 4, "stream": stream}
        return bool(get(f"{self.state['proxy_url']}/v1/chat/completions", self.state["inference_key"], body))

    def query(self, text: str) -> list[dict[str, Any]]:
        """What Prometheus answers now."""
        asked = urllib.parse.urlencode({"query": text})
        found: list[dict[str, Any]] = json.loads(get(f"{self.prometheus}/api/v1/query?{asked}"))["data"]["result"]
        return found


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """Started once. Not below pytest's own folder: under root the database server runs as another account."""
    folder = Path(tempfile.mkdtemp(prefix="fleetpulse-monitoring-"))
    folder.chmod(0o755)
    try:
        with ExitStack() as stack:
            yield bring_up(folder, stack)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def bring_up(folder: Path, stack: ExitStack) -> Live:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FLEETPULSE_", "WORKER_"))}

    def run(name: str, command: list[str], **settings: str) -> Child:
        child = Child(name, command, folder / f"{name}.log", environment | settings)
        child.start()
        stack.callback(end, child)
        return child

    python = [sys.executable, "-m", "fleetpulse"]
    up = [*python, "up", "--workers", "2", "--data-dir", str(folder / "up")]
    main = run("up", up, FLEETPULSE_AGENT_SAMPLE_INTERVAL_SECONDS="1")
    main.wait_until((folder / "up" / STATE_FILE).exists, WAIT_SECONDS)
    state = json.loads((folder / "up" / STATE_FILE).read_text())
    own_port = free_port()
    victim = run(
        VICTIM,
        [*python, "agent"],
        FLEETPULSE_KAFKA_BOOTSTRAP=state["kafka_bootstrap"],
        FLEETPULSE_AGENT_WORKER_ID=VICTIM,
        FLEETPULSE_AGENT_PORT=str(own_port),
        FLEETPULSE_AGENT_STATE_DIR=str(folder / "agent"),
        FLEETPULSE_AGENT_GPUS="none",
    )
    workers = partial(agents_of, state)
    until(lambda: VICTIM in workers() and len(workers()) == 3, "all workers are heard")
    agents = {name: url for name, url in workers().items() if name != VICTIM}
    targets = {name: [host_of(state[f"{name}_url"])] for name in ("collector", "control", "proxy")}
    targets["agent"] = [host_of(url) for url in agents.values()]
    webhook = ThreadingHTTPServer((LOOPBACK, 0), Webhook)
    webhook.told = []
    threading.Thread(target=webhook.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    stack.callback(webhook.server_close)
    stack.callback(webhook.shutdown)
    ports = [free_port(), free_port()]
    write_configurations(folder, targets, webhook.server_port, ports[1])
    run(
        "alertmanager",
        [
            *("prometheus-alertmanager", f"--config.file={folder}/alertmanager.yml", "--cluster.listen-address="),
            *(f"--web.listen-address={LOOPBACK}:{ports[1]}", f"--storage.path={folder}/alertmanager"),
        ],
    )
    run(
        "prometheus",
        [
            *("prometheus", f"--config.file={folder}/prometheus.yml", f"--web.listen-address={LOOPBACK}:{ports[0]}"),
            # An alert that fires before Alertmanager is found is told again after this long.
            *(f"--storage.tsdb.path={folder}/prometheus", "--rules.alert.resend-delay=1s"),
        ],
    )
    made = Live(
        state,
        *(f"http://{LOOPBACK}:{port}" for port in ports),
        targets,
        webhook.told,
        next(name for name, url in agents.items() if "gpu_memory_total_bytes{" in get(f"{url}/metrics")),
    )
    until(lambda: len(made.query("up == 1")) == 5, "Prometheus reaches everything")
    asyncio.run(write_nonsense(state["kafka_bootstrap"]))
    victim.kill()
    return made


def end(child: Child) -> None:
    """At once and with all that it started: nothing of it is wanted any more."""
    started = psutil.Process(child.pid).children(recursive=True) if child.running else []
    child.kill()
    for process in started:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(started, WAIT_SECONDS)


def agents_of(state: Mapping[str, Any]) -> dict[str, str]:
    """Addresses of the agents that are heard, by worker."""
    heard = json.loads(get(f"{state['control_url']}/workers", state["admin_key"]))["workers"]
    return {each["worker_id"]: each["agent_url"] for each in heard if each["state"] == "alive" and each["agent_url"]}


def host_of(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc


async def write_nonsense(bootstrap: str) -> None:
    """A message that nobody can use."""
    producer = StreamProducer(StreamSettings(bootstrap=bootstrap), "nonsense")
    await producer.start()
    try:
        await producer.send(HEARTBEATS.name, b"nonsense", b"key")
    finally:
        await producer.stop()


def write_configurations(folder: Path, targets: Mapping[str, list[str]], webhook_port: int, alertmanager: int) -> None:
    """The shipped ones, in a hurry and with other addresses."""
    for path in (ROOT / "alerts" / "rules").glob("*.yml"):
        rules = yaml.safe_load(path.read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                if "for" in rule and rule["alert"] not in UNHURRIED:
                    rule["for"] = hurried(rule["for"])
        (folder / f"rules-{path.name}").write_text(yaml.safe_dump(rules))
    prometheus = yaml.safe_load((ROOT / "alerts" / "prometheus.yml").read_text())
    prometheus["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    prometheus["rule_files"] = [f"{folder}/rules-*.yml"]
    prometheus["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [f"{LOOPBACK}:{alertmanager}"]}]
    for job in prometheus["scrape_configs"]:
        job["static_configs"] = [{"targets": targets[job["job_name"].removeprefix("fleetpulse-")]}]
        job.pop("file_sd_configs", None)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(prometheus))
    text = (ROOT / "alerts" / "alertmanager.yml").read_text().replace(f"{LOOPBACK}:9099", f"{LOOPBACK}:{webhook_port}")
    text = re.sub(r"group_wait: \S+", "group_wait: 500ms", text)
    text = re.sub(r"(repeat_interval: )30s", rf"\g<1>{hurried('30s')}", text)
    (folder / "alertmanager.yml").write_text(re.sub(r"group_interval: \S+", "group_interval: 1s", text))


def hurried(wait: str) -> str:
    seconds = int(wait[:-1]) * {"s": 1, "m": 60, "h": 3_600}[wait[-1]]
    return f"{seconds * 1_000 // HURRY}ms"


def test_the_death_of_a_worker_reaches_a_person(live: Live) -> None:
    def notification() -> dict[str, Any] | None:
        for path, told in list(live.told):
            for alert in told["alerts"]:
                if alert["labels"]["alertname"] == "FleetpulseWorkerStale" and alert["status"] == "firing":
                    assert path == "/chat"
                    return alert
        return None

    alert = until(notification, "the notification")
    assert alert["labels"]["worker_id"] == VICTIM
    assert alert["labels"]["severity"] == "warning"
    assert alert["labels"]["cluster"] == "fleetpulse"
    assert VICTIM in alert["annotations"]["description"]
    page = alert["annotations"]["runbook_url"].rpartition("/blob/main/")[2]
    assert "# FleetpulseWorkerStale" in (ROOT / page).read_text()


def test_the_dead_mans_switch_is_told_all_the_time(live: Live) -> None:
    until(
        lambda: [path for path, _ in live.told].count("/dead-man") >= 3,
        "the dead man's receiver hears it again and again",
    )
    names = {
        alert["labels"]["alertname"] for path, told in live.told if path == "/dead-man" for alert in told["alerts"]
    }
    assert names == {"FleetpulseWatchdog"}


@pytest.mark.parametrize(
    ("source", "target", "other"),
    [
        (
            {"alertname": "FleetpulsePipelineBlind", "severity": "critical", "scope": "pipeline"},
            {"alertname": "FleetpulseWorkerStale", "severity": "warning", "scope": "worker", "worker_id": "a"},
            {"alertname": "FleetpulseGpuXid", "severity": "critical", "scope": "gpu", "worker_id": "b"},
        ),
        (
            {"alertname": "FleetpulseHostDown", "severity": "warning", "scope": "worker", "instance": "a:8003"},
            {"alertname": "FleetpulseGpuHot", "severity": "critical", "scope": "gpu", "instance": "a:8003"},
            {"alertname": "FleetpulseGpuHot", "severity": "critical", "scope": "gpu", "instance": "b:8003"},
        ),
        (
            {"alertname": "FleetpulseConsumerLag", "severity": "critical", "scope": "pipeline", "topic": "a"},
            {"alertname": "FleetpulseConsumerLag", "severity": "warning", "scope": "pipeline", "topic": "a"},
            {"alertname": "FleetpulseConsumerLag", "severity": "warning", "scope": "pipeline", "topic": "b"},
        ),
    ],
    ids=["blind pipeline", "host down", "critical"],
)
def test_an_alert_that_explains_others_silences_them(
    live: Live, source: dict[str, str], target: dict[str, str], other: dict[str, str]
) -> None:
    cluster = f"{source['alertname']}-test"
    given = [labels | {"cluster": cluster} for labels in (source, target, other)]
    now = datetime.now(UTC).isoformat()
    url = f"{live.alertmanager}/api/v2/alerts"

    def states() -> set[tuple[str, str]]:
        get(url, body=[{"labels": labels, "startsAt": now} for labels in given])
        asked = urllib.parse.urlencode({"filter": f'cluster="{cluster}"'})
        found = json.loads(get(f"{url}?{asked}"))
        return {(json.dumps(each["labels"], sort_keys=True), each["status"]["state"]) for each in found}

    wanted = {
        (json.dumps(labels, sort_keys=True), "suppressed" if labels is given[1] else "active") for labels in given
    }
    until(lambda: states() == wanted, "the explained alert is silent, and no other")


def test_everything_that_is_served_is_documented_and_its_labels_are_bounded(live: Live) -> None:
    live.chat(stream=False)
    documented = {(family.service, family.name): family for family in families()}
    for service, hosts in live.targets.items():
        for host in hosts:
            values: dict[str, set[str]] = defaultdict(set)
            for family in text_string_to_metric_families(get(f"http://{host}/metrics")):
                name = f"{family.name}_total" if family.type == "counter" else family.name
                if name.endswith("_created"):
                    continue
                told = documented[service, name]
                assert told.text == family.documentation
                for sample in family.samples:
                    assert set(sample.labels) - {"le"} == set(told.labels), sample
                    for label in told.labels:
                        values[label].add(sample.labels[label])
            for label, found in values.items():
                bound = LABELS[service][label]
                assert len(found) <= bound.most, (service, label)
                assert not bound.values or found <= bound.values, (service, label)


def test_every_panel_gets_an_answer_from_prometheus(live: Live) -> None:
    waiting = {}
    for path in sorted((ROOT / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                if "expr" in target:
                    text = target["expr"].replace("$__rate_interval", "30s").replace("$worker", live.worker)
                    waiting[f"{path.stem}: {panel['title']} {target['refId']}"] = text.replace("$model", ".+")
    assert len(waiting) > 80

    def answered() -> bool:
        live.chat(stream=True)
        for name, text in list(waiting.items()):
            assert "$" not in text, name
            if live.query(text):
                del waiting[name]
        return not waiting

    deadline = time.monotonic() + WAIT_SECONDS
    while not answered():
        assert time.monotonic() < deadline, f"no data: {sorted(waiting)}"
        time.sleep(0.5)


def test_no_rule_fails(live: Live) -> None:
    def rules() -> list[dict[str, Any]]:
        groups = json.loads(get(f"{live.prometheus}/api/v1/rules"))["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    until(lambda: all(rule["health"] != "unknown" for rule in rules()), "all rules were evaluated")
    assert [(rule["name"], rule["lastError"]) for rule in rules() if rule["health"] != "ok"] == []


def test_the_shipped_dashboards_variables_have_values(live: Live) -> None:
    until(lambda: live.query("fleetpulse_proxy_model_workers"), "the models are known")
    assert {each["metric"]["model"] for each in live.query("fleetpulse_proxy_model_workers")} == {MODEL}
