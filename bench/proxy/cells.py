"""One measurement of one gateway at one number of connections."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.request import urlopen

from load import Caller, Prober, Streams, Target
from process_tree import cpu_seconds, rss_bytes

# A stream that a gateway leaves running would be over some day.
_EVENTS = 100_000
_SETTLE_SECONDS = 0.3
_PROBE_PAUSE_SECONDS = 0.01
_GONE_SECONDS = 20.0
_START_SECONDS = 20.0


@dataclass(frozen=True)
class StreamsCell:
    """``microseconds`` of CPU time an event, and memory: 0 where there is no gateway."""

    events_per_second: float
    microseconds: float
    rss_per_stream_bytes: float
    first_token_ms: list[float]
    """Of one more stream at a time, while the others run."""


@dataclass(frozen=True)
class RequestsCell:
    """Answers in one piece, each asked for as soon as the last is there. ``microseconds`` of CPU time each."""

    requests_per_second: float
    microseconds: float


async def streams_cell(
    target: Target, engine: Target, connections: int, step_milliseconds: int, seconds: float, probes: int
) -> StreamsCell:
    before = _rss(target)
    async with _running(target, engine, connections, step_milliseconds) as streams:
        await asyncio.sleep(_SETTLE_SECONDS)
        events, cpu, started = streams.events, _cpu(target), time.perf_counter()
        await asyncio.sleep(seconds)
        events, cpu, passed = streams.events - events, _cpu(target) - cpu, time.perf_counter() - started
        memory = (_rss(target) - before) / connections
        first = await _first_tokens(target, probes)
    return StreamsCell(events / passed, cpu / events * 1e6, memory, [each * 1000 for each in first])


async def requests_cell(target: Target, connections: int, seconds: float) -> RequestsCell:
    request = target.request(events=40, milliseconds=0, is_stream=False)
    callers = [await Caller.to(target) for _ in range(connections)]
    try:
        for caller in callers:
            caller.start(request)
        async with asyncio.timeout(_START_SECONDS):
            await asyncio.gather(*(caller.first for caller in callers))
        await asyncio.sleep(_SETTLE_SECONDS)
        answers, cpu, started = sum(each.answers for each in callers), _cpu(target), time.perf_counter()
        await asyncio.sleep(seconds)
        answers = sum(each.answers for each in callers) - answers
        cpu, passed = _cpu(target) - cpu, time.perf_counter() - started
    finally:
        for caller in callers:
            caller.transport.abort()
    # What is under way is no part of the next measurement.
    await asyncio.sleep(_SETTLE_SECONDS)
    return RequestsCell(answers / passed, cpu / answers * 1e6)


@asynccontextmanager
async def _running(target: Target, engine: Target, connections: int, step_milliseconds: int) -> AsyncIterator[Streams]:
    """Streams that the gateway lets go of at the end, when their clients have gone."""
    streams = Streams(target)
    try:
        async with asyncio.timeout(_START_SECONDS):
            await streams.open(connections, _EVENTS, step_milliseconds)
        yield streams
    finally:
        streams.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GONE_SECONDS):
                while await asyncio.to_thread(_streams_in, engine):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)


def _streams_in(engine: Target) -> int:
    with urlopen(f"http://127.0.0.1:{engine.port}/running") as answer:
        return int(json.load(answer)["running"])


async def _first_tokens(target: Target, probes: int) -> list[float]:
    request = target.request(events=0, milliseconds=1)
    prober = await Prober.to(target)
    times = []
    try:
        # The first finds no kept connection to the engine.
        async with asyncio.timeout(_START_SECONDS):
            for _ in range(probes + 1):
                times.append(await prober.ask(request))
                await asyncio.sleep(_PROBE_PAUSE_SECONDS)
    finally:
        prober.transport.abort()
    return times[1:]


def _cpu(target: Target) -> float:
    return cpu_seconds(target.pid) if target.pid is not None else 0.0


def _rss(target: Target) -> int:
    return rss_bytes(target.pid) if target.pid is not None else 0
