"""Fault campaigns on Apache Kafka: a stream of messages under way while processes are killed and frozen, and a checker
that counts every acknowledged message in the database. The checker is tried on collectors with planted bugs."""

import asyncio
import os
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from fleetpulse.local import otlp_messages as otlp
from fleetpulse.local.apache_kafka import ApacheKafka
from fleetpulse.local.ports import free_port
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.local.processes import Child
from fleetpulse.settings import DatabaseSettings, StreamSettings
from fleetpulse.stream.admin import ensure_topics
from fleetpulse.stream.errors import NotDeliveredError
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import METRICS

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

AGENTS = 12
GPUS = 2
MESSAGE_SECONDS = 0.05
MILLISECOND = 1_000_000
COLLECTOR = ("-m", "fleetpulse", "collector")
PLANTED = Path(__file__).with_name("planted_collector.py")


@dataclass
class Books:
    """What the brokers acknowledged: message times (Unix ms) by worker, and those whose fate is unknown."""

    acknowledged: dict[str, set[int]] = field(default_factory=dict)
    resent: int = 0

    def older_than(self, seconds: float) -> "Books":
        """Messages that must have arrived by now: one of them missing is lost."""
        newest = time.time() * 1000 - seconds * 1000
        return Books({worker: {t for t in times if t < newest} for worker, times in self.acknowledged.items()})

    @property
    def count(self) -> int:
        return sum(len(times) for times in self.acknowledged.values())


@dataclass
class Verdict:
    """What the database has of it."""

    lost: int
    doubled: int
    wrong_gpu_rows: int

    @property
    def clean(self) -> bool:
        return (self.lost, self.doubled, self.wrong_gpu_rows) == (0, 0, 0)


def check(database_url: str, books: Books, run: str) -> Verdict:
    """Every acknowledged message must be there exactly once, with all its rows."""
    with psycopg.connect(database_url) as connection:
        stored: dict[str, Counter[int]] = {}
        for worker, milliseconds, count in connection.execute(
            "SELECT w.worker_id, (extract(epoch FROM s.time) * 1000)::bigint, count(*)"
            " FROM system_samples s JOIN workers w USING (worker_key) WHERE w.worker_id LIKE %s GROUP BY 1, 2",
            (f"{run}-%",),
        ):
            stored.setdefault(worker, Counter())[milliseconds] = count
        row = connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM gpu_samples s JOIN workers w USING (worker_key)"
            " WHERE w.worker_id LIKE %s GROUP BY w.worker_id, s.time HAVING count(*) <> %s) AS wrong",
            (f"{run}-%", GPUS),
        ).fetchone()
        assert row is not None
    lost = sum(len(times - stored.get(worker, Counter()).keys()) for worker, times in books.acknowledged.items())
    doubled = sum(count - 1 for times in stored.values() for count in times.values() if count > 1)
    return Verdict(lost, doubled, row[0])


async def one_agent(producer: StreamProducer, worker: str, books: Books, stop: asyncio.Event) -> None:
    """Send messages in order, each until it is acknowledged: what an agent does, resending included."""
    sequence = at_ms = 0
    times = books.acknowledged.setdefault(worker, set())
    numbers = random.Random(worker)
    while not stop.is_set():
        sequence += 1
        at_ms = max(at_ms + 1, time.time_ns() // MILLISECOND)  # unique: the message's name in the books
        message = otlp.agent_message(worker, sequence, at_ms * MILLISECOND, gpus=GPUS, numbers=numbers)
        while True:
            try:
                await producer.send(METRICS.name, message, worker.encode())
            except NotDeliveredError:
                books.resent += 1
                if stop.is_set():
                    return
            else:
                times.add(at_ms)
                break
        await asyncio.sleep(MESSAGE_SECONDS)


@asynccontextmanager
async def traffic(stream: StreamSettings, run: str) -> AsyncIterator[Books]:
    """Agents that send while the block runs; afterwards all that they sent is acknowledged."""
    books, stop = Books(), asyncio.Event()
    producer = StreamProducer(stream, f"agents-{run}")
    await producer.start()
    try:
        async with asyncio.TaskGroup() as agents:
            for number in range(AGENTS):
                agents.create_task(one_agent(producer, f"{run}-{number}", books, stop))
            yield books
            stop.set()
    finally:
        await producer.stop()


@dataclass
class Parts:
    """The real parts of a campaign."""

    broker: ApacheKafka
    postgres: EmbeddedPostgres
    database_url: str
    stream: StreamSettings
    folder: Path

    def collector(
        self, name: str, arguments: tuple[str, ...] = ("-m", "fleetpulse", "collector"), **more: str
    ) -> Child:
        environment = os.environ | {
            "FLEETPULSE_KAFKA_BOOTSTRAP": self.stream.bootstrap,
            "FLEETPULSE_KAFKA_REQUEST_TIMEOUT_SECONDS": "3",
            "FLEETPULSE_KAFKA_STALL_TIMEOUT_SECONDS": "6",
            "FLEETPULSE_DATABASE_URL": self.database_url,
            "FLEETPULSE_COLLECTOR_PORT": str(free_port()),
            "FLEETPULSE_COLLECTOR_LEASE_SECONDS": "2",
            **more,
        }
        return Child(name, (sys.executable, *arguments), self.folder / f"{name}.log", environment)


@contextmanager
def running(*children: Child) -> Iterator[None]:
    """Start processes and leave none behind, frozen ones neither."""
    try:
        for child in children:
            child.start()
        yield
    finally:
        for child in children:
            child.thaw()
            child.kill()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    from fleetpulse.database import prepare

    folder = tmp_path_factory.mktemp("campaign")
    postgres = EmbeddedPostgres(folder / "postgres", free_port())
    broker = ApacheKafka(folder / "kafka", free_port())
    postgres.start()
    try:
        broker.start()
        stream = StreamSettings(bootstrap=broker.bootstrap, partitions=4, request_timeout_seconds=3)
        asyncio.run(ensure_topics(stream))
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE campaign")
        url = postgres.url("campaign")
        asyncio.run(prepare(DatabaseSettings(url=url)))
        yield Parts(broker, postgres, url, stream, folder)
    finally:
        broker.stop()
        postgres.stop()


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.25)
    return True


async def settled(parts: Parts, books: Books, run: str, seconds: float) -> Verdict:
    """The verdict once everything is there, or when time is up."""
    await until(lambda: check(parts.database_url, books, run).lost == 0, seconds)
    return check(parts.database_url, books, run)


def seeded() -> tuple[int, random.Random]:
    seed = int(os.environ.get("FLEETPULSE_TEST_SEED") or secrets.randbelow(2**32))
    print(f"FLEETPULSE_TEST_SEED={seed}")
    return seed, random.Random(seed)


async def test_killing_and_freezing_each_part_in_turn_loses_no_row_and_doubles_none(parts: Parts) -> None:
    seed, draw = seeded()
    run = f"campaign{seed}"
    collectors = [parts.collector(f"collector-{number}") for number in range(2)]

    async def kill_collector() -> None:
        victim = draw.choice(collectors)
        victim.kill()
        await asyncio.sleep(draw.uniform(0.2, 2))
        victim.start()

    async def freeze_collector() -> None:
        victim = draw.choice(collectors)
        victim.freeze()
        # Past the lease, so that it wakes up as one whose partitions belong to another.
        await asyncio.sleep(draw.uniform(2.5, 4))
        victim.thaw()

    async def kill_broker() -> None:
        parts.broker.kill()
        await asyncio.to_thread(parts.broker.start)

    async def freeze_broker() -> None:
        parts.broker.freeze()
        await asyncio.sleep(draw.uniform(1, 4))
        parts.broker.thaw()

    async def kill_database() -> None:
        parts.postgres.kill()
        await asyncio.to_thread(parts.postgres.start)

    async def freeze_database() -> None:
        parts.postgres.freeze()
        await asyncio.sleep(draw.uniform(1, 4))
        parts.postgres.thaw()

    faults = [kill_collector, freeze_collector, kill_broker, freeze_broker, kill_database, freeze_database]
    schedule = faults + draw.choices(faults, k=4)
    draw.shuffle(schedule)
    with running(*collectors):
        async with traffic(parts.stream, run) as books:
            assert await until(lambda: check(parts.database_url, books, run).lost < books.count, 30), "nothing arrives"
            for fault in schedule:
                print(f"{time.strftime('%X')} {fault.__name__}, acknowledged so far {books.count}")
                await fault()
                await asyncio.sleep(draw.uniform(0.5, 2))
        verdict = await settled(parts, books, run, 60)
        ended = [collector.name for collector in collectors if not collector.running]
    print(f"acknowledged {books.count}, resent {books.resent}, {verdict}")
    assert books.count > 500
    assert verdict.clean
    assert not ended, "a fault of its surroundings ended a collector"


async def caught(
    parts: Parts, bug: str, harm: Callable[[list[Child], random.Random], AsyncIterator[None]], wrong: str
) -> None:
    """Run a planted bug under the faults that bite it until the checker sees the harm."""
    seed, draw = seeded()
    run = f"{bug}{seed}"
    collectors = [parts.collector(f"{bug}-{n}", (str(PLANTED), bug), PLANTED_STALL_SECONDS="0.15") for n in range(2)]
    with running(*collectors):
        async with traffic(parts.stream, run) as books:
            deadline = time.monotonic() + 90
            found = False
            async for _ in harm(collectors, draw):
                found = getattr(check(parts.database_url, books.older_than(10), run), wrong) > 0
                if found or time.monotonic() > deadline:
                    break
        if wrong == "lost" and not found:
            found = (await settled(parts, books, run, 15)).lost > 0
    assert found, f"the checker did not see {wrong} messages of {bug}"


async def killing(collectors: list[Child], draw: random.Random) -> AsyncIterator[None]:
    while True:
        await asyncio.sleep(draw.uniform(2.5, 4))
        victim = draw.choice(collectors)
        victim.kill()
        victim.start()
        yield


async def freezing(collectors: list[Child], draw: random.Random) -> AsyncIterator[None]:
    while True:
        await asyncio.sleep(draw.uniform(1, 2))
        victim = draw.choice(collectors)
        victim.freeze()
        await asyncio.sleep(draw.uniform(3, 4))
        victim.thaw()
        await asyncio.sleep(1)
        yield


async def test_the_checker_catches_offsets_written_before_their_rows(parts: Parts) -> None:
    await caught(parts, "offset_before_rows", killing, "lost")


async def test_the_checker_catches_a_missing_fence(parts: Parts) -> None:
    await caught(parts, "no_fence", freezing, "doubled")


async def test_the_checker_catches_a_blind_resend(parts: Parts) -> None:
    async def cutting(collectors: list[Child], draw: random.Random) -> AsyncIterator[None]:
        while True:
            await asyncio.sleep(draw.uniform(0.5, 1.5))
            with psycopg.connect(parts.postgres.url(), autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'fleetpulse-collector-writer'"
                )
            yield

    await caught(parts, "blind_resend", cutting, "doubled")
