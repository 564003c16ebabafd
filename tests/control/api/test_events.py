"""The stream of events: what the lifecycle topic and the heartbeats bring, and coming back to it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from control.api.event_log import EventLog
from control.api.event_sources import changes, looked_again, states
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.local.ports import free_port
from fleetpulse.settings import DatabaseSettings, StreamSettings
from fleetpulse.stream import heartbeat, lifecycle
from fleetpulse.stream.admin import ensure_topics
from fleetpulse.stream.fleet_view import FleetRules, FleetView
from fleetpulse.stream.heartbeat import Heartbeat
from fleetpulse.stream.lifecycle import LifecycleEvent
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import HEARTBEATS, LIFECYCLE


class Listener:
    """An open stream of events."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.comments = 0
        self.last_id = ""

    async def next(self) -> tuple[str, str, Any]:
        """Id, kind and data of the next event."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(20):
            while True:
                line = (await self.answer.content.readuntil(b"\n")).decode().rstrip("\n")
                if line == ":":
                    self.comments += 1
                elif line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                    self.last_id = value if name == "id" else self.last_id
                elif "data" in fields:
                    return fields["id"], fields["event"], msgspec.json.decode(fields["data"])
                else:
                    fields = {}

    async def ended(self) -> None:
        """Return once the service has ended the stream."""
        async with asyncio.timeout(10):
            while await self.answer.content.read(65_536):
                pass


@asynccontextmanager
async def listening(api: Any, last: str | None = None, query: str = "", **headers: str) -> AsyncIterator[Listener]:
    asked = api.admin | headers | ({"Last-Event-ID": last} if last else {})
    async with aiohttp.ClientSession() as session, session.get(f"{api.url}/events{query}", headers=asked) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        listener = Listener(answer)
        # From the first event on nothing is missed.
        async with asyncio.timeout(10):
            await answer.content.readuntil(b"retry: 2000\n\n")
        listener.last_id, kind, _ = await listener.next()
        assert kind == "begin"
        yield listener


async def clients(api: Any, count: int) -> None:
    async with asyncio.timeout(10):
        while api.parts.events.clients != count:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)


def add(api: Any, number: int, organization_id: str | None = None) -> None:
    api.parts.events.append("lifecycle", msgspec.json.encode({"n": number}), organization_id)


async def test_events_come_as_they_happen_with_comments_in_between(serve: Any) -> None:
    api = await serve(event_interval_seconds=0.05)
    async with listening(api) as listener:
        await asyncio.sleep(0.3)
        add(api, 1)
        assert (await listener.next())[1:] == ("lifecycle", {"n": 1})
        assert listener.comments >= 2
        assert listener.answer.headers["X-Correlation-Id"]
    await clients(api, 0)


async def test_a_client_that_comes_back_misses_nothing(serve: Any) -> None:
    api = await serve()
    async with listening(api) as listener:
        add(api, 1)
        identity, _, _ = await listener.next()
    for number in (2, 3):
        add(api, number)
    # Browsers that open it anew cannot send the header.
    for asked in ({"last": identity}, {"query": f"?last_event_id={identity}"}):
        async with listening(api, **asked) as listener:
            assert [(await listener.next())[2] for _ in range(2)] == [{"n": 2}, {"n": 3}]


async def test_a_client_that_was_cut_off_before_it_heard_anything_misses_nothing(serve: Any) -> None:
    api, other = await serve(), await serve()
    async with listening(api) as listener:
        identity = listener.last_id
    add(api, 1)
    async with listening(api, identity) as listener:
        assert (await listener.next())[2] == {"n": 1}
    # Another process behind the same address numbers its events otherwise, and says that some may be missed.
    async with listening(other, identity) as listener:
        assert (await listener.next())[1] == "gap"


@pytest.mark.parametrize("last", ["nonsense", "0123456789ab-1", "PROCESS-99", "PROCESS-x", "PROCESS-1"])
async def test_a_client_that_missed_something_is_told_so(serve: Any, last: str) -> None:
    api = await serve(events_kept=2)
    for number in range(4):
        add(api, number)
    async with listening(api, last.replace("PROCESS", api.parts.events._process)) as listener:
        identity, kind, _ = await listener.next()
        assert kind == "gap"
        add(api, 5)
        assert (await listener.next())[2] == {"n": 5}
    assert identity == api.parts.events.identify(4)


async def test_a_client_that_is_too_slow_is_told_so_and_holds_no_memory(serve: Any) -> None:
    api = await serve(events_kept=10)
    async with listening(api) as listener:
        await clients(api, 1)
        for number in range(100):
            add(api, number)
        assert (await listener.next())[1] == "gap"
    assert len(api.parts.events._events) == 10


async def test_a_stream_ends_when_its_key_is_revoked_or_the_service_stops(
    serve: Any, sql: Any, shared_database_url: str, new_key: Any
) -> None:
    api = await serve(shared_database_url, event_interval_seconds=0.05)
    key = await new_key("read")
    async with listening(api, Authorization=f"Bearer {key}") as listener, listening(api) as other:
        await sql.execute("UPDATE api_keys SET revoked_at = now()")
        api.parts.admission.forget()
        await listener.ended()
        await clients(api, 1)
        api.parts.events.close()
        await other.ended()


async def test_an_organisation_hears_only_of_its_own(
    serve: Any, sql: Any, shared_database_url: str, new_key: Any
) -> None:
    api = await serve(shared_database_url)
    tenant = await api.ask("POST", "/organizations", 201, json={"slug": "acme", "name": "Acme"})
    key = await new_key("read", organization_id=tenant["organization_id"])
    async with listening(api, Authorization=f"Bearer {key}") as listener:
        await clients(api, 1)
        add(api, 1)
        add(api, 2, "somebody else")
        add(api, 3, tenant["organization_id"])
        assert (await listener.next())[2] == {"n": 3}


async def test_what_is_not_for_somebody_is_not_missed_by_them(
    serve: Any, sql: Any, shared_database_url: str, new_key: Any
) -> None:
    api = await serve(shared_database_url, events_kept=2, event_interval_seconds=0.05)
    tenant = await api.ask("POST", "/organizations", 201, json={"slug": "acme", "name": "Acme"})
    key = f"Bearer {await new_key('read', organization_id=tenant['organization_id'])}"
    async with listening(api, Authorization=key) as listener:
        await clients(api, 1)
        for number in range(5):
            add(api, number, "somebody else")
            async with asyncio.timeout(20):
                while listener.last_id != api.parts.events.identify(number + 1):
                    line = (await listener.answer.content.readuntil(b"\n")).decode().strip()
                    assert line != "event: gap"
                    listener.last_id = line.removeprefix("id: ") if line.startswith("id: ") else listener.last_id
    async with listening(api, listener.last_id, Authorization=key) as listener:
        await clients(api, 1)
        add(api, 6, tenant["organization_id"])
        assert (await listener.next())[1:] == ("lifecycle", {"n": 6})


async def test_too_many_clients_are_refused(serve: Any) -> None:
    api = await serve(event_clients=1)
    async with listening(api):
        await clients(api, 1)
        await api.ask("GET", "/events", 503)


def test_what_changed_between_two_looks() -> None:
    before: Any = {"a": ("i", "alive"), "b": ("i", "alive"), "c": ("i", "stale"), "d": ("i", "alive")}
    now: Any = {"a": ("i", "alive"), "b": ("i", "stale"), "d": ("j", "alive"), "e": ("i", "never_seen")}
    found = {(one.worker_id, one.instance_id, one.state, one.previous_state) for one in changes(before, now)}
    assert found == {
        ("b", "i", "stale", "alive"),
        ("c", "i", None, "stale"),
        ("d", "j", "alive", "alive"),
        ("e", "i", "never_seen", None),
    }


async def test_a_worker_is_looked_at_again_without_a_look_at_all() -> None:
    view, now = FleetView(FleetRules(stale_after_seconds=0.05, stale_intervals=0.05)), time.monotonic()
    for name in ("v", "w"):
        view.observe(beat(worker_id=name, instance_id=name, interval_seconds=1.0), now)
    seen = states(view)
    assert seen == {"v": ("v", "alive"), "w": ("w", "alive")}
    assert await looked_again(view, seen) == seen
    await asyncio.sleep(0.06)
    view.observe(beat(worker_id="v", instance_id="v", sequence=2, interval_seconds=1.0), time.monotonic())
    assert await looked_again(view, seen) == {"v": ("v", "alive"), "w": ("w", "stale")}
    view.forget("w")
    assert await looked_again(view, seen) == {"v": ("v", "alive")}


async def test_an_event_that_nobody_waits_for_costs_its_place_alone() -> None:
    log = EventLog(3)
    for _ in range(5):
        log.append("worker", b"{}", None)
    assert [event.sequence for event in log.after(0)] == [3, 4, 5]
    assert [event.sequence for event in log.after(4)] == [5]
    assert log.after(5) == []
    assert (log.has_all_after(1), log.has_all_after(2)) == (False, True)
    await log.wait(5, 0.01)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(tmp_path / "broker", free_port())
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


async def test_the_stream_drives_the_events(
    broker: EmbeddedBroker, database_settings: DatabaseSettings, running: Any
) -> None:
    stream = StreamSettings(bootstrap=broker.bootstrap, partitions=2)
    await ensure_topics(stream)
    producer = StreamProducer(stream, "test")
    await producer.start()
    try:
        async with running(database_settings, broker.bootstrap) as service:
            await service.until("/workers", lambda _, fleet: fleet["stream"]["lag_records"] is not None)
            async with listening(service) as listener:
                found = await until_heard(producer, listener)
                assert (found["state"], found["organization_id"]) == ("booting", "o")
                await producer.send(LIFECYCLE.name, b"\x00junk", b"i")
                await producer.send(HEARTBEATS.name, heartbeat.encode(beat()))
                while True:
                    _, kind, data = await listener.next()
                    if kind == "worker":
                        break
                assert data == {"worker_id": "w", "instance_id": "i", "state": "alive", "previous_state": None}
    finally:
        await producer.stop()


async def until_heard(producer: StreamProducer, listener: Listener) -> Any:
    """Send until the service, which begins at the topic's end, has joined it."""
    message = LifecycleEvent(
        instance_id="i",
        version=2,
        state="booting",
        previous_state="provisioning",
        reason="r",
        at_unix_nano=time.time_ns(),
        organization_id="o",
        provider="mock",
        zone="z",
        instance_type="t",
    )
    heard = asyncio.create_task(listener.next())
    while not heard.done():
        await producer.send(LIFECYCLE.name, lifecycle.encode(message), b"i")
        await asyncio.wait({heard}, timeout=0.2)
    _, kind, data = await heard
    assert kind == "lifecycle"
    return data


def beat(**changes: Any) -> Heartbeat:
    fields: dict[str, Any] = {
        "worker_id": "w",
        "instance_id": "i",
        "boot_id": "b",
        "sequence": 1,
        "sent_unix_nano": time.time_ns(),
        "interval_seconds": 5.0,
        "status": "ready",
        "agent_version": "1",
    }
    return Heartbeat(**(fields | changes))
