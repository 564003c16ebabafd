"""Delivery keeps each kind's order through outages, and never holds up who made a message."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from agent.delivery import WAITING_MESSAGES, Lane
from agent.signals import Signals
from agent.spool import Spool
from agent.transport import Kind, RefusedError
from fleetpulse.stream.errors import NotDeliveredError


@dataclass
class Way:
    """A way out that can be cut, fail, refuse, or keep messages waiting for their answer."""

    connected: bool = True
    at_once: int = 32
    fail_next: int = 0
    refuse: set[bytes] = field(default_factory=set)
    answer: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: list[bytes] = field(default_factory=list)
    asked: int = 0

    async def send(self, _: Kind, value: bytes) -> None:
        self.asked += 1
        await self.answer.wait()
        if self.fail_next:
            self.fail_next -= 1
            raise NotDeliveredError("no answer")
        if value in self.refuse:
            raise RefusedError("status 400")
        self.arrived.append(value)


@pytest.fixture
def way() -> Way:
    way = Way()
    way.answer.set()
    return way


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.delivery.RETRY_SECONDS", (0.01, 0.02))
    monkeypatch.setattr("agent.delivery.CONNECTION_CHECK_SECONDS", 0.005)


@asynccontextmanager
async def running(way: Way, folder: Path, bound: int = 1 << 20) -> AsyncIterator[Lane]:
    lane = Lane("heartbeats", way, Spool(folder, bound), Signals(CollectorRegistry()))
    task = asyncio.create_task(lane.run())
    try:
        yield lane
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        lane.close()


def segments(folder: Path) -> list[Path]:
    return list(folder.glob("*.segment"))


def numbers(first: int, end: int) -> list[bytes]:
    return [str(n).encode() for n in range(first, end)]


async def test_messages_arrive_in_order_without_touching_the_disk(way: Way, tmp_path: Path, eventually) -> None:
    async with running(way, tmp_path) as lane:
        for value in numbers(0, 5):
            lane.submit(value)
        await eventually(lambda: not lane.unsent)
        assert way.arrived == numbers(0, 5)
    assert segments(tmp_path) == []


async def test_an_outage_goes_to_disk_and_is_made_up_for_in_order(way: Way, tmp_path: Path, eventually) -> None:
    way.connected = False
    async with running(way, tmp_path) as lane:
        for value in numbers(0, 100):
            lane.submit(value)
        assert lane.spool.messages > 80
        way.connected = True
        for value in numbers(100, 150):
            lane.submit(value)
        await eventually(lambda: not lane.unsent)
        lane.submit(b"150")
        await eventually(lambda: not lane.unsent)
    assert way.arrived == numbers(0, 151)


async def test_a_failed_batch_is_sent_again_from_its_first_failure_on(way: Way, tmp_path: Path, eventually) -> None:
    async with running(way, tmp_path) as lane:
        way.fail_next = 1
        for value in numbers(0, 6):
            lane.submit(value)
        await eventually(lambda: not lane.unsent)
    # Those behind the failed one may arrive twice; the first arrivals are in order.
    assert list(dict.fromkeys(way.arrived[-6:])) == numbers(0, 6)


async def test_what_is_unanswered_is_on_disk_before_much_can_be_lost(way: Way, tmp_path: Path, eventually) -> None:
    way.answer.clear()
    async with running(way, tmp_path) as lane:
        for value in numbers(0, WAITING_MESSAGES + 1):
            lane.submit(value)
        assert lane.spool.messages == WAITING_MESSAGES + 1
        await eventually(lambda: way.asked > 0)
        way.answer.set()
        await eventually(lambda: not lane.unsent)
    assert sorted(set(way.arrived)) == numbers(0, WAITING_MESSAGES + 1)


async def test_stopping_puts_the_unsent_on_disk_for_the_next_start(way: Way, tmp_path: Path, eventually) -> None:
    way.connected = False
    async with running(way, tmp_path) as lane:
        for value in numbers(0, 3):
            lane.submit(value)
    way.connected = True
    async with running(way, tmp_path) as lane:
        lane.submit(b"3")
        await eventually(lambda: not lane.unsent)
    assert way.arrived == numbers(0, 4)


async def test_a_refused_message_is_dropped_and_its_neighbours_arrive(way: Way, tmp_path: Path, eventually) -> None:
    way.refuse = {b"1"}
    async with running(way, tmp_path) as lane:
        for value in numbers(0, 3):
            lane.submit(value)
        await eventually(lambda: not lane.unsent)
        assert lane.signals.refused.labels("heartbeats")._value.get() == 1
    assert way.arrived == [b"0", b"2"]


async def test_the_oldest_is_lost_first_and_counted_when_the_outage_outlasts_the_spool(
    way: Way, tmp_path: Path, eventually: Callable
) -> None:
    way.connected = False
    async with running(way, tmp_path, bound=50_000) as lane:
        sent = [str(n).encode().rjust(100) for n in range(1_000)]
        for value in sent:
            lane.submit(value)
        lost = lane.spool.dropped
        assert lost > 0
        way.connected = True
        await eventually(lambda: not lane.unsent)
    assert way.arrived == sent[lost:]


async def test_submitting_never_waits(way: Way, tmp_path: Path) -> None:
    way.answer.clear()
    async with running(way, tmp_path) as lane:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for value in numbers(0, 200):
            lane.submit(value)
        assert loop.time() - began < 5
