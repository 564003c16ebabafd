import asyncio
import contextlib
import hashlib
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from psycopg.sql import SQL, Identifier
from pydantic import SecretStr

from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.mock_engine.scheduler import EngineLimits
from fleetpulse.local.mock_engine.server import mock_engine
from fleetpulse.local.ports import free_port
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.settings import DatabaseSettings, ProxySettings, StreamSettings
from fleetpulse.stream import heartbeat, lifecycle, usage
from fleetpulse.stream.admin import ensure_topics
from fleetpulse.stream.heartbeat import Engine, Heartbeat
from fleetpulse.stream.lifecycle import InstanceState, LifecycleEvent
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import HEARTBEATS, LIFECYCLE, USAGE
from fleetpulse.stream.usage import UsageRecord
from proxy.main import run

WAIT_SECONDS = 20.0
BEAT_SECONDS = 0.2
MODEL = "acme/mock-model"


async def until(condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Poll for a condition, which may be a coroutine function."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def proxy_database_url(postgres_server: EmbeddedPostgres, template_database: str) -> str:
    """One database for all tests of the proxy."""
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(
            SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier("proxy"), Identifier(template_database))
        )
    return postgres_server.url("proxy")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(tmp_path / "broker", free_port())
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
async def stream(broker: EmbeddedBroker) -> StreamSettings:
    settings = StreamSettings(
        bootstrap=broker.bootstrap, partitions=2, request_timeout_seconds=3, stall_timeout_seconds=4
    )
    await ensure_topics(settings)
    return settings


@dataclass
class Book:
    """Rows of the access tables, for one test."""

    connection: psycopg.AsyncConnection[Any]
    organization_id: UUID = field(default_factory=uuid4)
    slug: str = field(default_factory=lambda: f"org-{secrets.token_hex(4)}")

    async def execute(self, sql: str, *parameters: object) -> None:
        await self.connection.execute(sql, parameters)

    async def organization(self) -> UUID:
        other = uuid4()
        await self.execute("INSERT INTO organizations VALUES (%s, %s, 'Another')", other, f"org-{other.hex[:8]}")
        return other

    async def model(self, name: str = MODEL, *, public: bool = True, active: bool = True) -> UUID:
        model_id = uuid4()
        await self.execute(
            "INSERT INTO models (model_id, hugging_face_id, name, public, active) VALUES (%s, %s, %s, %s, %s)",
            *(model_id, name, name.partition("/")[2], public, active),
        )
        return model_id

    async def key(self, scopes: Sequence[str] = ("inference",), organization: UUID | None = None, **limits: Any) -> str:
        text = f"fp_{secrets.token_hex(19)}"
        columns = {
            "key_id": uuid4(),
            "organization_id": organization or self.organization_id,
            "name": "test",
            "prefix": text[:11],
            "digest": hashlib.sha256(text.encode()).digest(),
            "scopes": list(scopes),
        } | limits
        names = SQL(", ").join(map(Identifier, columns))
        marks = SQL(", ").join([SQL("%s")] * len(columns))
        await self.connection.execute(
            SQL("INSERT INTO api_keys ({}) VALUES ({})").format(names, marks), list(columns.values())
        )
        return text


@pytest.fixture
async def book(proxy_database_url: str) -> AsyncIterator[Book]:
    """The access tables with one organisation and nothing else."""
    async with await psycopg.AsyncConnection.connect(proxy_database_url, autocommit=True) as connection:
        book = Book(connection)
        await book.execute("INSERT INTO organizations VALUES (%s, %s, 'Test')", book.organization_id, book.slug)
        yield book
        await connection.execute(
            "DELETE FROM api_keys; DELETE FROM model_access; DELETE FROM offerings; DELETE FROM model_aliases;"
            "DELETE FROM models; DELETE FROM organizations"
        )


@dataclass
class Worker:
    """A worker as the stream shows it: heartbeats that a test can change while they are being sent."""

    producer: StreamProducer
    instance_id: str
    engine_url: str
    models: tuple[str, ...] = (MODEL,)
    waiting: int = 0
    running: int = 0
    steps: int = 0
    engine_state: heartbeat.EngineState = "ready"
    status: heartbeat.WorkerStatus = "ready"
    is_stepping: bool = True
    silent: bool = False
    interval_seconds: float = BEAT_SECONDS
    boot_id: str = field(default_factory=lambda: secrets.token_hex(4))
    sequence: int = 0
    version: int = 0

    async def beat(self) -> None:
        self.sequence += 1
        self.steps += self.is_stepping
        message = Heartbeat(
            worker_id=f"worker-{self.instance_id}",
            instance_id=self.instance_id,
            boot_id=self.boot_id,
            sequence=self.sequence,
            sent_unix_nano=time.time_ns(),
            interval_seconds=self.interval_seconds,
            status=self.status,
            agent_version="test",
            engine=Engine(
                state=self.engine_state,
                kind="vllm",
                models=self.models,
                requests_waiting=self.waiting,
                requests_running=self.running,
                step_count=self.steps,
            ),
        )
        await self.producer.send(HEARTBEATS.name, heartbeat.encode(message), self.instance_id.encode())

    async def move(self, state: InstanceState, engine_url: str | None = None) -> None:
        """Tell of a new state, as control does."""
        self.version += 1
        self.engine_url = engine_url or self.engine_url
        message = LifecycleEvent(
            instance_id=self.instance_id,
            version=self.version,
            state=state,
            previous_state=None,
            reason="test",
            at_unix_nano=time.time_ns(),
            organization_id="test",
            provider="static",
            zone="here",
            instance_type="test",
            model=MODEL,
            engine_url=self.engine_url,
        )
        await self.producer.send(LIFECYCLE.name, lifecycle.encode(message), self.instance_id.encode())

    async def keep_beating(self) -> None:
        while True:
            if not self.silent:
                with contextlib.suppress(Exception):
                    await self.beat()
            await asyncio.sleep(self.interval_seconds)


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def answer_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A whole answer without anything in it."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")


@dataclass
class ScriptedEngine:
    """Raw bytes in place of an engine."""

    scripts: Sequence[Script]
    url: str = ""
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Head and body of each."""
    connections: int = 0
    open: int = 0
    serving: set["asyncio.Task[None]"] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        self.connections += 1
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                self.requests.append((head, await reader.readexactly(length)))
                script = self.scripts[min(len(self.requests), len(self.scripts)) - 1]
                await script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            # The end of the test cancels scripts that hang, and asyncio's server would report that as an error.
            pass
        finally:
            self.open -= 1
            self.serving.discard(task)
            writer.transport.abort()


@dataclass
class Site:
    """A proxy with everything around it."""

    stream: StreamSettings
    database: DatabaseSettings
    book: Book
    producer: StreamProducer
    session: aiohttp.ClientSession
    watching: aiohttp.ClientSession
    """For looks at health and metrics: requests of the other one then come on connections that had nothing else."""
    stack: AsyncExitStack
    key: str = ""
    port: int = 0
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    async def start(self, **changes: Any) -> asyncio.Event:
        """Start a proxy; returns what stops it. It is stopped at the end of the test."""
        self.port = free_port()
        # A busy machine may take longer than the second that is meant for engines that do not answer.
        settings = ProxySettings(port=self.port, **{"connect_timeout_seconds": 10.0} | changes)
        stop = asyncio.Event()
        running = asyncio.create_task(run(settings, self.stream, self.database, stop), name="proxy")

        async def end() -> None:
            stop.set()
            async with asyncio.timeout(WAIT_SECONDS):
                await running

        self.stack.push_async_callback(end)
        await until(self.is_ready, "the proxy to be ready")
        return stop

    async def is_ready(self) -> bool:
        try:
            async with self.watching.get(f"{self.url}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientConnectionError:
            return False

    async def worker(self, engine_url: str, ready: bool = True, **changes: Any) -> Worker:
        """A worker that sends heartbeats until the end of the test."""
        worker = Worker(self.producer, f"instance-{next(self.numbers)}", engine_url, **changes)
        if ready:
            await worker.move("ready")
        beating = asyncio.create_task(worker.keep_beating(), name=worker.instance_id)
        self.stack.push_async_callback(_cancel, beating)
        return worker

    async def engine(self, step_seconds: float = 0.002, port: int = 0, **options: Any) -> str:
        """A mock engine in this process; returns its URL."""
        limits = EngineLimits(step_seconds=step_seconds)
        used = await self.stack.enter_async_context(mock_engine(port, MODEL, limits=limits, **options))
        return f"http://127.0.0.1:{used}"

    async def until(self, condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
        """Poll for a condition, which may be a coroutine function."""
        await until(condition, what, seconds)

    @staticmethod
    def refused(answer: tuple[int, Any], status: int, code: str) -> None:
        """An answer of the proxy is this refusal, in OpenAI's shape."""
        got, body = answer
        assert got == status, body
        assert body["error"]["code"] == code
        assert set(body["error"]) == {"message", "type", "param", "code", "correlation_id"}

    async def scripted(self, *scripts: "Script") -> "ScriptedEngine":
        """An engine that does what the scripts say: one for each request, the last for all that follow. Without any,
        it answers with an empty object."""
        engine = ScriptedEngine(scripts or (answer_nothing,))
        server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
        engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

        async def end() -> None:
            server.close()
            for task in tuple(engine.serving):
                await _cancel(task)

        self.stack.push_async_callback(end)
        return engine

    async def routed(self, count: int) -> None:
        """Wait until the proxy knows so many workers that can take requests."""

        async def are_serving() -> bool:
            return await self.metric('fleetpulse_proxy_workers{are="serving"}') >= count

        await until(are_serving, f"{count} workers on the route")

    async def metric(self, series: str) -> float:
        """A value of the proxy's /metrics; 0 when it is not there."""
        async with self.watching.get(f"{self.url}/metrics") as answer:
            text = await answer.text()
        for line in text.splitlines():
            if line.startswith(f"{series} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    async def chat(self, stream: bool = False, headers: dict[str, str] | None = None, **fields: Any) -> tuple[int, Any]:
        """Status and body of a chat; the body of a stream is its raw bytes, as far as it came."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 8}
        async with self.session.post(
            f"{self.url}/v1/chat/completions",
            json=body | {"stream": stream} | fields,
            headers=self.headers | (headers or {}),
        ) as answer:
            if "event-stream" not in answer.content_type:
                return answer.status, await answer.json()
            received = bytearray()
            with contextlib.suppress(aiohttp.ClientPayloadError):
                async for chunk in answer.content.iter_any():
                    received += chunk
            return answer.status, bytes(received)

    async def all_usage(self) -> list[UsageRecord]:
        """The records of all requests that are over."""

        async def are_sent() -> bool:
            return not await self.metric("fleetpulse_proxy_usage_records_waiting")

        await until(are_sent, "all usage records to be sent")
        return await self.usage(int(await self.metric("fleetpulse_proxy_usage_records_sent_total")))

    async def usage(self, count: int) -> list[UsageRecord]:
        """The first usage records on the stream, oldest first; waits for so many. One that was sent again, because the
        proxy ended before the broker had said that it has it, is one."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.stream.bootstrap, enable_auto_commit=False)
        await consumer.start()
        try:
            partitions = [TopicPartition(USAGE.name, number) for number in range(self.stream.partitions)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            found: dict[str, UsageRecord] = {}
            deadline = time.monotonic() + WAIT_SECONDS
            while len(found) < count:
                assert time.monotonic() < deadline, f"{len(found)} of {count} usage records"
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    told = [usage.decode(record.value or b"") for record in records]
                    found |= {record.record_id: record for record in told}
            return sorted(found.values(), key=lambda record: record.started_unix_nano)
        finally:
            await consumer.stop()


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Awaitable[None]]:
    """until(), for tests without a site."""
    return until


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture
async def site(stream: StreamSettings, proxy_database_url: str, book: Book) -> AsyncIterator[Site]:
    """Everything but the proxy, which a test starts with its own settings; a model and a key are there."""
    async with AsyncExitStack() as stack:
        session, watching = [
            await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
            for _ in range(2)
        ]
        producer = StreamProducer(stream, "test-fleet")
        await producer.start()
        stack.push_async_callback(producer.stop)
        await book.model()
        site = Site(
            stream,
            DatabaseSettings(url=SecretStr(proxy_database_url)),
            book,
            producer,
            session,
            watching,
            stack,
            await book.key(),
        )
        yield site
