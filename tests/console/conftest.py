"""The console before a real control, fed by heartbeats of made-up workers through a real broker, in a real browser."""

import asyncio
import contextlib
import itertools
import math
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import psycopg
import pytest
import pytest_asyncio
from msgspec.structs import replace
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright
from psycopg.sql import SQL, Identifier

from control.main import run
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.ports import free_port
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.settings import ControlSettings, DatabaseSettings, JobSettings, StreamSettings
from fleetpulse.stream import heartbeat, lifecycle
from fleetpulse.stream.admin import ensure_topics
from fleetpulse.stream.heartbeat import Engine, Heartbeat, Load
from fleetpulse.stream.lifecycle import LifecycleEvent
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import HEARTBEATS, LIFECYCLE

ADMIN_KEY = "the admin key of the console's tests"
WAIT_SECONDS = 30.0
BEAT_SECONDS = 0.4
# Ages of the samples, which go on into the future so that there is always a new one, and of those that are missing.
SAMPLE_AGES_SECONDS = range(-900, 450, 5)
GAP_SECONDS = (200, 350)

INSTANCE = """
INSERT INTO organizations (slug, name) VALUES ('owners', 'Owners');
INSERT INTO instances (instance_id, organization_id, provider, zone, instance_type, state, created_by)
SELECT 'busy', organization_id, 'far', 'here', 'large', 'ready', 'test' FROM organizations WHERE slug = 'owners';
INSERT INTO instance_transitions (instance_id, version, to_state, reason, detail, evidence, actor)
VALUES ('busy', 1, 'ready', 'engine_ready', 'The engine lists its models.', '{}', 'test')
"""


class Control:
    """A control service while it runs."""

    def __init__(self, url: str, database_url: str, bootstrap: str) -> None:
        self.url = url
        self.database_url = database_url
        self.bootstrap = bootstrap
        self.admin = {"Authorization": f"Bearer {ADMIN_KEY}"}

    async def answers(self) -> None:
        """Wait until it does."""
        async with asyncio.timeout(WAIT_SECONDS), aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with session.get(f"{self.url}/workers", headers=self.admin) as answer:
                        heard = (await answer.json())["stream"]["lag_records"] is not None
                    async with session.get(f"{self.url}/deployments", headers=self.admin) as answer:
                        remembers = answer.status == 200
                    if remembers and (heard or not self.bootstrap):
                        return
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running(
    database_url: str, bootstrap: str = "", port: int | None = None, **settings: Any
) -> AsyncIterator[Control]:
    """Control on a database, with a broker or without."""
    port, stop = port or free_port(), asyncio.Event()
    stream = StreamSettings(bootstrap=bootstrap or "127.0.0.1:1", request_timeout_seconds=3.0, stale_after_seconds=2.5)
    own = ControlSettings(port=port, admin_key=ADMIN_KEY, **settings)  # type: ignore[arg-type]
    database = DatabaseSettings(url=database_url)  # type: ignore[arg-type]
    control = asyncio.create_task(run(own, JobSettings(), stream, database, stop))
    try:
        found = Control(f"http://127.0.0.1:{port}", database_url, bootstrap)
        await found.answers()
        yield found
    finally:
        stop.set()
        async with asyncio.timeout(WAIT_SECONDS):
            await control


@pytest.fixture
def start_control() -> Any:
    """Starts control while a block runs; see ``running``."""
    return running


@pytest.fixture(scope="module")
def console_database_url(postgres_server: EmbeddedPostgres, template_database: str) -> Iterator[str]:
    """A database for the module."""
    name = "console"
    with psycopg.connect(postgres_server.url(), autocommit=True) as sql:
        sql.execute(SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(template_database)))
        yield postgres_server.url(name)
        sql.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deaf_control(console_database_url: str) -> AsyncIterator[Control]:
    """Control without a broker."""
    async with running(console_database_url) as control:
        yield control


class Workers:
    """Made-up workers that send heartbeats until they are told to be silent."""

    def __init__(self, producer: StreamProducer) -> None:
        self._producer = producer
        self._sequences = itertools.count(1)
        self._talking: dict[str, dict[str, Any]] = {}

    def talk(self, worker: str, **fields: Any) -> None:
        """Send heartbeats from now on."""
        self._talking[worker] = fields

    def hush(self, worker: str) -> None:
        """Send none from now on."""
        self._talking.pop(worker, None)

    async def keep_talking(self) -> None:
        """Until cancelled."""
        while True:
            for worker, fields in list(self._talking.items()):
                await self._beat(worker, fields)
            await asyncio.sleep(BEAT_SECONDS)

    async def _beat(self, worker: str, changes: dict[str, Any]) -> None:
        fields: dict[str, Any] = {
            "worker_id": worker,
            "instance_id": worker,
            "boot_id": "boot",
            "sequence": next(self._sequences),
            "sent_unix_nano": time.time_ns(),
            "interval_seconds": BEAT_SECONDS,
            "status": "ready",
            "agent_version": "1.2.3",
            "host_name": f"{worker}-host",
        }
        beat = Heartbeat(**(fields | changes))
        if beat.engine is not None:
            beat = replace(beat, engine=replace(beat.engine, step_count=beat.sequence))
        await self._producer.send(HEARTBEATS.name, heartbeat.encode(beat))

    async def step(self, instance_id: str, state: lifecycle.InstanceState, version: int) -> None:
        """A lifecycle message, as control sends them."""
        event = LifecycleEvent(
            instance_id=instance_id,
            version=version,
            state=state,
            previous_state="starting",
            reason="engine_ready",
            at_unix_nano=time.time_ns(),
            organization_id="org",
            provider="mock",
            zone="here",
            instance_type="small",
        )
        await self._producer.send(LIFECYCLE.name, lifecycle.encode(event), instance_id.encode())


BUSY = {
    "model_id": "org/model",
    "engine": Engine("ready", "vllm", None, ("org/model",), 3, 12, 0.42, 1),
    "load": Load(0.31, 0.5, 8, 0.83, 0.9),
}
BARE = {"load": Load(cpu_utilization_ratio=0.05)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def workers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Workers, str]]:
    """Two workers that talk, and the broker's address."""
    broker = EmbeddedBroker(tmp_path_factory.mktemp("console") / "broker", free_port())
    await asyncio.to_thread(broker.start)
    try:
        stream = StreamSettings(bootstrap=broker.bootstrap, partitions=1)
        await ensure_topics(stream)
        producer = StreamProducer(stream, "test")
        await producer.start()
        made = Workers(producer)
        made.talk("busy", **BUSY)
        made.talk("bare", **BARE)
        talking = asyncio.create_task(made.keep_talking())
        try:
            yield made, broker.bootstrap
        finally:
            talking.cancel()
            await asyncio.gather(talking, return_exceptions=True)
            await producer.stop()
    finally:
        await asyncio.to_thread(broker.stop)


def _add_history(database_url: str) -> None:
    """Of the busy worker: its instance, and samples of its GPU with a gap."""
    now = datetime.now(UTC)
    with psycopg.connect(database_url, autocommit=True) as sql:
        sql.execute(INSTANCE)
        ((worker,),) = sql.execute(
            "INSERT INTO workers (worker_id, instance_id) VALUES ('busy', 'busy') RETURNING worker_key"
        ).fetchall()
        ((gpu,),) = sql.execute(
            "INSERT INTO gpus (worker_key, hw_id, gpu_index) VALUES (%s, 'GPU-0', 0) RETURNING gpu_key", (worker,)
        ).fetchall()
        samples = [
            (now - timedelta(seconds=age), worker, gpu, 0.5 + 0.3 * math.sin(age / 60))
            for age in SAMPLE_AGES_SECONDS
            if not GAP_SECONDS[0] < age < GAP_SECONDS[1]
        ]
        with sql.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO gpu_samples (time, worker_key, gpu_key, utilization_ratio, temperature_celsius)"
                " VALUES (%s, %s, %s, %s, 71)",
                samples,
            )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def control(workers: tuple[Workers, str], console_database_url: str) -> AsyncIterator[Control]:
    """Control that hears the workers and has samples of one of them."""
    _add_history(console_database_url)
    async with running(console_database_url, workers[1]) as control:
        yield control


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium."""
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield launched
        await launched.close()


class Tab:
    """A page of the console, and what went wrong in it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.wrong: list[str] = []
        self.refusals_expected = False
        page.set_default_timeout(WAIT_SECONDS * 1000)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.wrong.append(f"exception: {error}"))
        page.on("request", self._asked)

    def _said(self, message: ConsoleMessage) -> None:
        refusal = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not (refusal and self.refusals_expected):
            self.wrong.append(f"{message.type}: {message.text}")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((f"{self.url}/", "data:")):
            self.wrong.append(f"asked elsewhere: {request.url}")

    async def open(self, path: str = "") -> Page:
        """Go to a view."""
        await self.page.goto(f"{self.url}/#/{path}")
        return self.page


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def logged_in(browser: Browser, control: Control) -> Any:
    """Cookies and storage of a browser that was given the admin key."""
    context = await browser.new_context()
    page = await context.new_page()
    await page.goto(control.url)
    await page.get_by_label("API key or admin key").fill(ADMIN_KEY)
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", name="Fleet").wait_for()
    state = await context.storage_state()
    await context.close()
    return state


@pytest_asyncio.fixture(loop_scope="module")
async def tabs(browser: Browser, control: Control, logged_in: Any) -> AsyncIterator[Any]:
    """Opens tabs; what went wrong in them fails the test."""
    async with AsyncExitStack() as stack:
        opened: list[Tab] = []

        async def new(*, known: bool = True, **options: Any) -> Tab:
            # Bars that glide to their new length would be looked at half-way.
            options = {"reduced_motion": "reduce", **options}
            options = {"storage_state": logged_in, **options} if known else options
            context: BrowserContext = await browser.new_context(**options)
            stack.push_async_callback(context.close)
            opened.append(Tab(await context.new_page(), control.url))
            return opened[-1]

        yield new
    assert [wrong for tab in opened for wrong in tab.wrong] == []
