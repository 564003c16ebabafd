"""Starts a proxy load's requests when their time has come, and collects what became of them."""

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import aiohttp

from fleetpulse.local.load_request import Result, Target, ask
from fleetpulse.local.load_stages import Stage, arrivals, target_at

_TICK_SECONDS: Final = 0.01
_SHOW_SECONDS: Final = 0.25
# A client of the closed model waits this long before it tries an address again where nobody listens.
_AWAY_SECONDS: Final = 0.1
# Requests under way at most; beyond, the next ones wait, which counts as their time.
_IN_FLIGHT_MOST: Final = 4_000


class Driver(ABC):
    """What both models share. A driver runs once."""

    def __init__(
        self, stages: Sequence[Stage], target: Target, stream_share: float, timeout_seconds: float, seed: int
    ) -> None:
        self.results: list[Result] = []
        self.outcomes: Counter[str] = Counter()
        self._stages = stages
        self._target = target
        self._stream_share = stream_share
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._draw = random.Random(seed)
        self._bodies = {is_stream: target.body(is_stream) for is_stream in (True, False)}
        self._requests = asyncio.TaskGroup()
        self._began = 0.0

    async def run(self, stop: asyncio.Event, show: Callable[[float], None]) -> None:
        """Until the last request has ended; when ``stop`` is set, requests under way are cut off. ``show`` is called
        with the seconds that have passed."""
        async with aiohttp.ClientSession(timeout=self._timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            self._began = time.monotonic()
            driving = asyncio.create_task(self._to_the_end(session), name="load")
            stopping = asyncio.create_task(stop.wait(), name="load-stop")
            try:
                while not driving.done() and not stopping.done():
                    show(self._elapsed())
                    await asyncio.wait({driving, stopping}, timeout=_SHOW_SECONDS, return_when="FIRST_COMPLETED")
            finally:
                stopping.cancel()
                if not driving.done():
                    driving.cancel()
                await asyncio.wait({driving, stopping})
            if not driving.cancelled():
                driving.result()

    @abstractmethod
    async def _drive(self, session: aiohttp.ClientSession) -> None:
        """Start requests until the stages are over."""

    async def _to_the_end(self, session: aiohttp.ClientSession) -> None:
        async with self._requests:
            await self._drive(session)

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    async def _one(self, session: aiohttp.ClientSession, due: float, stage: Stage) -> Result:
        is_stream = self._draw.random() < self._stream_share
        result = Result(stage.name, due, self._elapsed(), is_stream)
        try:
            await ask(session, self._target, self._bodies[is_stream], result, self._began)
        finally:
            self.results.append(result)
            self.outcomes[result.outcome] += 1
        return result


class OpenLoad(Driver):
    """Requests come at their times, whatever became of those before."""

    async def _drive(self, session: aiohttp.ClientSession) -> None:
        room = asyncio.Semaphore(_IN_FLIGHT_MOST)
        for due, stage in arrivals(self._stages):
            if (early := due - self._elapsed()) > 0:
                await asyncio.sleep(early)
            await room.acquire()
            self._requests.create_task(self._in_room(room, session, due, stage))

    async def _in_room(self, room: asyncio.Semaphore, session: aiohttp.ClientSession, due: float, stage: Stage) -> None:
        try:
            await self._one(session, due, stage)
        finally:
            room.release()


class ClosedLoad(Driver):
    """So many clients, each with one request at a time."""

    _wanted = 0

    async def _drive(self, session: aiohttp.ClientSession) -> None:
        clients: set[int] = set()
        while now := target_at(self._stages, self._elapsed()):
            self._wanted = round(now[1])
            for number in set(range(self._wanted)) - clients:
                clients.add(number)
                self._requests.create_task(self._client(session, number, clients))
            await asyncio.sleep(_TICK_SECONDS)
        self._wanted = 0

    async def _client(self, session: aiohttp.ClientSession, number: int, clients: set[int]) -> None:
        try:
            while number < self._wanted and (now := target_at(self._stages, self._elapsed())):
                result = await self._one(session, self._elapsed(), now[0])
                if result.outcome == "unreachable":
                    await asyncio.sleep(_AWAY_SECONDS)
        finally:
            clients.discard(number)
