"""The books: what was asked of the proxy, what the database has of it, and what the engines counted."""

import asyncio
import contextlib
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import aiohttp
import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from fleetpulse.command import main
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.fleet_table import lines_to_paste
from fleetpulse.local.ports import LOOPBACK, free_port
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.local.processes import Child
from fleetpulse.settings import StreamSettings
from fleetpulse.stream import lifecycle
from fleetpulse.stream.admin import ensure_topics
from fleetpulse.stream.lifecycle import LifecycleEvent
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import LIFECYCLE, USAGE

pytestmark = pytest.mark.timeout(240)

WAIT_SECONDS = 60.0
KEY = f"fp_{uuid4().hex}"
# Each is served by an engine of its own.
BOOKED, COUNTED = "books/booked", "books/counted"
PARTITIONS = 2
HURRIED = {
    "FLEETPULSE_COLLECTOR_LEASE_SECONDS": "2",
    "FLEETPULSE_COLLECTOR_USAGE_INTERVAL_SECONDS": "0.3",
    "FLEETPULSE_COLLECTOR_LEDGER_WINDOW_SECONDS": "2",
    "FLEETPULSE_COLLECTOR_LEDGER_INTERVAL_SECONDS": "0.5",
    "FLEETPULSE_COLLECTOR_LEDGER_SETTLE_SECONDS": "1",
}


@dataclass
class Site:
    """Proxy, collector, and two workers with an agent and an engine each."""

    database_url: str
    stream: StreamSettings
    proxy_url: str
    engines: dict[str, tuple[Child, str]]
    collector: Child
    metrics_url: str

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(statement, values).fetchall()

    async def until(self, condition: Any, what: str) -> Any:
        """Wait for a query's or anything's good answer."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                found = condition()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return found
            assert time.monotonic() < deadline, f"not in time: {what}"
            await asyncio.sleep(0.05)

    async def shows(self, session: aiohttp.ClientSession, url: str, text: str) -> bool:
        """Whether a service's metrics have a text in them."""
        async with session.get(f"{url}/metrics") as answer:
            return text in await answer.text()


@pytest.fixture(scope="module")
def site(
    postgres_server: EmbeddedPostgres, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("books")
    name = f"books_{os.getpid()}"
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template_database}".encode())
    url = postgres_server.url(name)
    open_access(url)
    with ExitStack() as stack:
        broker = EmbeddedBroker(folder / "broker", free_port())
        broker.start()
        stack.callback(broker.stop)
        stream = StreamSettings(bootstrap=broker.bootstrap, partitions=PARTITIONS)
        asyncio.run(ensure_topics(stream))
        shared = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FLEETPULSE_")},
            "FLEETPULSE_DATABASE_URL": url,
            "FLEETPULSE_KAFKA_BOOTSTRAP": broker.bootstrap,
        }

        def run(name: str, module: list[str], **settings: str) -> Child:
            child = Child(name, [sys.executable, "-m", *module], folder / f"{name}.log", {**shared, **settings})
            child.start()
            stack.callback(child.kill)
            return child

        proxy_port, collector_port = free_port(), free_port()
        collector = run(
            "collector", ["fleetpulse", "collector"], FLEETPULSE_COLLECTOR_PORT=str(collector_port), **HURRIED
        )
        run("proxy", ["fleetpulse", "proxy"], FLEETPULSE_PROXY_PORT=str(proxy_port))
        engines = {}
        for model in (BOOKED, COUNTED):
            worker, port = model.partition("/")[2], free_port()
            arguments = ["--port", str(port), "--model", model, "--step-seconds", "0.01"]
            engine = run(f"engine-{worker}", ["fleetpulse.local.mock_engine", *arguments])
            engines[model] = engine, f"http://{LOOPBACK}:{port}"
            run(
                f"agent-{worker}",
                ["fleetpulse", "agent"],
                FLEETPULSE_AGENT_PORT=str(free_port()),
                FLEETPULSE_AGENT_WORKER_ID=f"w-{worker}",
                FLEETPULSE_AGENT_INSTANCE_ID=f"i-{worker}",
                FLEETPULSE_AGENT_STATE_DIR=str(folder / worker),
                FLEETPULSE_AGENT_ENGINE="vllm",
                FLEETPULSE_AGENT_ENGINE_URL=engines[model][1],
                FLEETPULSE_AGENT_GPUS="none",
                FLEETPULSE_AGENT_SAMPLE_INTERVAL_SECONDS="0.4",
                FLEETPULSE_AGENT_HEARTBEAT_INTERVAL_SECONDS="0.3",
            )
        asyncio.run(make_ready(stream, engines))
        yield Site(
            url, stream, f"http://{LOOPBACK}:{proxy_port}", engines, collector, f"http://{LOOPBACK}:{collector_port}"
        )


def open_access(url: str) -> None:
    """A key for two models, and a price for one instance."""
    with psycopg.connect(url) as connection:
        ((organization,),) = connection.execute(
            "INSERT INTO organizations (slug, name) VALUES ('books', 'Books') RETURNING organization_id"
        ).fetchall()
        for model in (BOOKED, COUNTED):
            connection.execute("INSERT INTO models (hugging_face_id, name) VALUES (%s, %s)", (model, model))
        connection.execute(
            "INSERT INTO api_keys (organization_id, name, prefix, digest, scopes)"
            " VALUES (%s, 'books', %s, %s, '{inference}')",
            (organization, KEY[:11], hashlib.sha256(KEY.encode()).digest()),
        )
        connection.execute(
            "INSERT INTO instances (instance_id, organization_id, provider, zone, instance_type, state, price_per_hour,"
            " created_by) VALUES ('i-booked', %s, 'test', 'here', 'test', 'ready', 3.6, 'test')",
            (organization,),
        )


async def make_ready(stream: StreamSettings, engines: dict[str, tuple[Child, str]]) -> None:
    """Tell of the instances, as control does."""
    producer = StreamProducer(stream, "books")
    await producer.start()
    for model, (_, url) in engines.items():
        message = LifecycleEvent(
            instance_id=f"i-{model.partition('/')[2]}",
            version=1,
            state="ready",
            previous_state=None,
            reason="test",
            at_unix_nano=time.time_ns(),
            organization_id="books",
            provider="static",
            zone="here",
            instance_type="test",
            model=model,
            engine_url=url,
        )
        await producer.send(LIFECYCLE.name, lifecycle.encode(message), message.instance_id.encode())
    await producer.stop()


@pytest.fixture
async def session(site: Site) -> Any:
    """Of a client with a key, once the proxy sends requests to both workers."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        known = 'fleetpulse_proxy_workers{are="serving"} 2.0'
        await site.until(lambda: site.shows(session, site.proxy_url, known), "the proxy to know both workers")
        yield session


@dataclass
class Client:
    """Sends requests and keeps the books of what came back."""

    site: Site
    session: aiohttp.ClientSession
    expected: dict[str, tuple[str, int | None, int | None]] = field(default_factory=dict)
    """Outcome, input and output tokens, by request id."""

    def ask(self, path: str = "/v1/chat/completions", **fields: Any) -> tuple[str, Any]:
        """A request under an id of its own."""
        request_id = f"books-{uuid4().hex}"
        body: dict[str, Any] = {"model": BOOKED, "max_tokens": 6} | fields
        if path == "/v1/chat/completions":
            body |= {"messages": [{"role": "user", "content": "one two three"}]}
        else:
            body = {"prompt": "one two three four"} | body
        return request_id, self.session.post(
            f"{self.site.proxy_url}{path}", json=body, headers={"X-Request-Id": request_id}
        )

    async def whole(self, path: str = "/v1/chat/completions", **fields: Any) -> None:
        """An answer in one piece."""
        request_id, sent = self.ask(path, **fields)
        async with sent as answer:
            usage = (await answer.json())["usage"]
            self.expected[request_id] = ("completed", usage["prompt_tokens"], usage["completion_tokens"])

    async def stream(self, **fields: Any) -> None:
        """A stream to its end."""
        request_id, sent = self.ask(stream=True, **fields)
        async with sent as answer:
            events = [line async for line in answer.content if line.startswith(b"data: {")]
        self.expected[request_id] = ("completed", 3, words(events))

    async def refused(self) -> None:
        """A prompt that is too long for the engine."""
        request_id, sent = self.ask("/v1/completions", prompt="one " * 9_000)
        async with sent as answer:
            assert answer.status == 400
        self.expected[request_id] = ("refused", None, None)

    async def left(self) -> None:
        """A stream that the client leaves."""
        request_id, sent = self.ask(stream=True, max_tokens=2_000, ignore_eos=True)
        async with sent as answer:
            events = 0
            async for line in answer.content:
                events += line.startswith(b"data: {")
                if events == 5:
                    break
            answer.close()
        self.expected[request_id] = ("cancelled", None, None)

    async def broken(self) -> None:
        """A stream whose engine dies."""
        request_id, sent = self.ask(stream=True, max_tokens=2_000, ignore_eos=True)
        events: list[bytes] = []
        async with sent as answer:
            with contextlib.suppress(aiohttp.ClientPayloadError):
                async for line in answer.content:
                    if line.startswith(b"data: {"):
                        events.append(line)
                    if len(events) == 5:
                        self.site.engines[BOOKED][0].kill()
        assert json.loads(events[-1][6:])["error"]["code"] == "stream_broken"
        self.expected[request_id] = ("broken", None, words(events[:-1]))


def words(events: list[bytes]) -> int:
    """Tokens of a stream: one an event with text."""
    deltas = [choice["delta"] for event in events for choice in json.loads(event[6:])["choices"]]
    return sum(bool(delta.get("content")) for delta in deltas)


async def sent_again(stream: StreamSettings, count: int) -> int:
    """Send every usage record of the topic a second time, to other partitions as well; returns how many there are now,
    at least ``count`` of them before."""
    consumer = AIOKafkaConsumer(bootstrap_servers=stream.bootstrap, enable_auto_commit=False)
    producer = StreamProducer(stream, "again")
    await consumer.start()
    await producer.start()
    try:
        partitions = [TopicPartition(USAGE.name, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        values: list[bytes] = []
        async with asyncio.timeout(WAIT_SECONDS):
            while len(values) < count:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    values += [record.value for record in records]
        for number, value in enumerate(values):
            await producer.send(USAGE.name, value, str(number).encode())
        return sum((await consumer.end_offsets(partitions)).values())
    finally:
        await producer.stop()
        await consumer.stop()


async def test_every_request_has_one_row_with_its_tokens_through_resends_and_a_collector_s_death(site, session):
    client = Client(site, session)
    await asyncio.gather(*(client.whole(path) for path in ("/v1/chat/completions", "/v1/completions") * 5))
    await asyncio.gather(*(client.stream() for _ in range(5)), *(client.left() for _ in range(3)), client.refused())
    ids = list(client.expected)
    rows = (
        "SELECT request_id, outcome, input_tokens, output_tokens FROM finops.inference_usage WHERE request_id = ANY(%s)"
    )
    await site.until(lambda: len(site.sql(rows, ids)) >= 1, "the first rows")
    site.collector.kill()
    await asyncio.gather(*(client.whole() for _ in range(5)))
    await client.broken()
    records = await sent_again(site.stream, len(client.expected))
    site.engines[BOOKED][0].start()
    site.collector.start()
    ids = list(client.expected)
    offsets = "SELECT sum(next_offset) FROM ingest_offsets WHERE topic = %s"
    await site.until(lambda: site.sql(offsets, USAGE.name)[0][0] >= records, "the whole topic to be read")
    found = site.sql(rows, ids)
    assert len(found) == len(ids)
    for request_id, outcome, read, made in found:
        wanted, wanted_read, wanted_made = client.expected[request_id]
        assert outcome == wanted
        if wanted == "cancelled":
            # More may have been on its way than the client took; how long the prompt was the engine had not told.
            assert (read, made >= 4) == (None, True)
        else:
            assert (read, made) == (wanted_read, wanted_made)
    await site.until(lambda: not site.sql("SELECT FROM finops.usage_marks"), "costs")
    ((rows_cost, sums_cost, attempts),) = site.sql(
        "SELECT sum(cost), (SELECT sum(cost) FROM instance_request_metrics), count(*) FILTER (WHERE cost IS NULL)"
        " FROM finops.inference_usage WHERE instance_id = 'i-booked'"
    )
    assert (rows_cost == sums_cost > 0, attempts) == (True, 0)


LEDGER = """
SELECT coalesce(sum(proxy_input_tokens + proxy_output_tokens), 0), coalesce(sum(engine_input_tokens), 0),
    coalesce(sum(engine_output_tokens), 0), coalesce(sum(gap_input_tokens), 0), coalesce(sum(gap_output_tokens), 0),
    count(*) FILTER (WHERE status = 'unknown')
FROM finops.token_ledger WHERE instance_id = 'i-counted' AND window_start >= %s
"""
BOUNDARY = """
SELECT date_bin('2 seconds', min(time) + INTERVAL '2 seconds', TIMESTAMPTZ '1970-01-01 00:00+00') AS boundary
FROM engine_samples JOIN workers USING (worker_key) WHERE instance_id = 'i-counted' AND time > %s
HAVING max(time) > date_bin('2 seconds', min(time) + INTERVAL '2 seconds', TIMESTAMPTZ '1970-01-01 00:00+00')
"""


async def test_the_ledger_has_no_gap_until_somebody_asks_the_engine_behind_the_proxy_s_back(site, session):
    # From the first window that begins behind a reading of the counters: what came before is in that already.
    now = datetime.now(UTC)
    ((since,),) = await site.until(
        lambda: site.sql(BOUNDARY, now), "the engine's counters to be read through a window's start"
    )
    client = Client(site, session)
    await asyncio.gather(*(client.whole(model=COUNTED) for _ in range(4)), client.stream(model=COUNTED))
    read = sum(read or 0 for _, read, _ in client.expected.values())
    made = sum(made or 0 for _, _, made in client.expected.values())
    await site.until(
        lambda: site.sql(LEDGER, since)[0] == pytest.approx((read + made, read, made, 0, 0, 0), abs=1e-6),
        "books that agree",
    )
    body = {"model": COUNTED, "prompt": "nobody knows of me", "max_tokens": 7, "ignore_eos": True}
    async with session.post(f"{site.engines[COUNTED][1]}/v1/completions", json=body) as answer:
        assert (await answer.json())["usage"]["completion_tokens"] == 7
    await site.until(
        lambda: site.sql(LEDGER, since)[0] == pytest.approx((read + made, read + 4, made + 7, 4, 7, 0), abs=1e-6),
        "the gap to be a row",
    )
    shown = 'fleetpulse_collector_ledger_workers{status="known"}'
    await site.until(lambda: site.shows(session, site.metrics_url, shown), "the ledger's metrics")


async def test_a_chat_shows_the_answer_and_says_in_a_line_what_is_wrong(site, session, monkeypatch, capsys):
    monkeypatch.setenv("FLEETPULSE_CHAT_URL", site.proxy_url)
    monkeypatch.setenv("FLEETPULSE_CHAT_API_KEY", KEY)

    async def typed(*arguments: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(main, ("chat", "hello", *arguments))
        told = capsys.readouterr()
        return status, told.out, told.err

    status, out, errors = await typed("--model", COUNTED)
    assert (status, errors, bool(out.strip())) == (0, "", True)
    nowhere = f"http://{LOOPBACK}:{free_port()}"
    for arguments, text in (
        (("--model", "no/such"), "the proxy refuses: "),
        (("--key", "wrong"), "the proxy refuses: "),
        (("--url", nowhere), f"the proxy at {nowhere} does not answer: "),
        (("--url", "nonsense"), "the proxy at nonsense does not answer: "),
    ):
        status, out, errors = await typed(*arguments)
        assert (status, out, errors.count("\n")) == (1, "", 1)
        assert errors.startswith(f"fleetpulse: {text}")


def test_the_lines_that_up_prints_work_as_pasted(site, session):
    lines = lines_to_paste(site.proxy_url, KEY, "http://127.0.0.1:1", "none", COUNTED).splitlines()
    shell, python = lines[0], lines[lines.index("in Python:") + 1 :]
    curl = subprocess.run(shlex.split(shell), capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(curl.stdout)["choices"][0]["message"]["content"]
    sdk = subprocess.run([sys.executable, "-c", "\n".join(python)], capture_output=True, text=True, timeout=60)
    assert (sdk.returncode, bool(sdk.stdout.strip())) == (0, True), sdk.stderr
