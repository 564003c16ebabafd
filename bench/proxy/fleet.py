"""What our proxy needs around it: database, broker, a key and a model, and workers whose heartbeats come."""

import asyncio
import hashlib
import os
import secrets
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from stub_engine import MODEL

from fleetpulse.database import prepare
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.ports import free_port
from fleetpulse.local.postgres import EmbeddedPostgres
from fleetpulse.local.processes import Child
from fleetpulse.settings import DatabaseSettings, StreamSettings
from fleetpulse.stream import heartbeat, lifecycle
from fleetpulse.stream.admin import ensure_topics
from fleetpulse.stream.heartbeat import Engine, Heartbeat
from fleetpulse.stream.lifecycle import LifecycleEvent
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import HEARTBEATS, LIFECYCLE

HEARTBEAT_SECONDS = 1.0
READY_SECONDS = 60.0


@dataclass(frozen=True)
class Ours:
    """The proxy as `fleetpulse proxy` starts it, with all its defaults."""

    child: Child
    port: int
    key: str


@asynccontextmanager
async def proxy(folder: Path, engines: Sequence[int]) -> AsyncIterator[Ours]:
    """The running proxy, which knows a worker for each engine."""
    broker = EmbeddedBroker(folder / "broker", free_port())
    with EmbeddedPostgres(folder / "postgres") as postgres:
        broker.start()
        try:
            stream = StreamSettings(bootstrap=broker.bootstrap)
            await ensure_topics(stream)
            await prepare(DatabaseSettings(url=postgres.url()))
            key = _let_in(postgres.url())
            beating = asyncio.create_task(_beat(stream, engines), name="heartbeats")
            child, port = _child(folder, broker.bootstrap, postgres.url())
            child.start()
            try:
                await asyncio.to_thread(child.wait_until, lambda: _knows(port, len(engines)), READY_SECONDS)
                yield Ours(child, port, key)
            finally:
                child.stop()
                beating.cancel()
                await asyncio.gather(beating, return_exceptions=True)
        finally:
            broker.stop()


def _child(folder: Path, bootstrap: str, url: str) -> tuple[Child, int]:
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLEETPULSE_")}
    own = {
        "FLEETPULSE_PROXY_PORT": str(port),
        "FLEETPULSE_KAFKA_BOOTSTRAP": bootstrap,
        "FLEETPULSE_DATABASE_URL": url,
    }
    return Child("proxy", (sys.executable, "-m", "fleetpulse", "proxy"), folder / "proxy.log", kept | own), port


def _let_in(url: str) -> str:
    """A key with limits that are counted and never reached, and the model."""
    key = f"fp_{secrets.token_hex(19)}"
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO organizations (slug, name) VALUES ('bench', 'Bench')")
        connection.execute(
            "INSERT INTO models (model_id, hugging_face_id, name, public, active)"
            " VALUES (gen_random_uuid(), %s, 'model', true, true)",
            (MODEL,),
        )
        connection.execute(
            "INSERT INTO api_keys (key_id, organization_id, name, prefix, digest, scopes, requests_per_minute,"
            " tokens_per_minute) SELECT gen_random_uuid(), organization_id, 'bench', %s, %s, '{inference}',"
            " 1000000000, 1000000000 FROM organizations",
            (key[:11], hashlib.sha256(key.encode()).digest()),
        )
    return key


async def _beat(stream: StreamSettings, engines: Sequence[int]) -> None:
    """Tell that the workers are ready, then send heartbeats until cancelled."""
    producer = StreamProducer(stream, "bench")
    await producer.start()
    try:
        for number, port in enumerate(engines):
            await producer.send(LIFECYCLE.name, lifecycle.encode(_ready(number, port)), _name(number).encode())
        sequence = 0
        while True:
            sequence += 1
            for number in range(len(engines)):
                await producer.send(
                    HEARTBEATS.name, heartbeat.encode(_beating(number, sequence)), _name(number).encode()
                )
            await asyncio.sleep(HEARTBEAT_SECONDS)
    finally:
        await producer.stop()


def _name(number: int) -> str:
    return f"bench-{number}"


def _ready(number: int, port: int) -> LifecycleEvent:
    return LifecycleEvent(
        instance_id=_name(number),
        version=1,
        state="ready",
        previous_state=None,
        reason="bench",
        at_unix_nano=time.time_ns(),
        organization_id="bench",
        provider="static",
        zone="here",
        instance_type="bench",
        model=MODEL,
        engine_url=f"http://127.0.0.1:{port}",
    )


def _beating(number: int, sequence: int) -> Heartbeat:
    return Heartbeat(
        worker_id=_name(number),
        instance_id=_name(number),
        boot_id="bench",
        sequence=sequence,
        sent_unix_nano=time.time_ns(),
        interval_seconds=HEARTBEAT_SECONDS,
        status="ready",
        agent_version="bench",
        engine=Engine(
            state="ready",
            kind="vllm",
            models=(MODEL,),
            requests_waiting=0,
            requests_running=1,
            step_count=sequence,
        ),
    )


def _knows(port: int, workers: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return f'fleetpulse_proxy_workers{{are="serving"}} {workers}.0' in answer.read().decode()
    except (OSError, urllib.error.HTTPError):
        return False
