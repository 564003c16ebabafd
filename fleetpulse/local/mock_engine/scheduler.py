"""How the mock engine spends its time: continuous batching over a queue, one step at a time, without a model."""

import asyncio
import contextlib
import math
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from fleetpulse.local.mock_engine.metrics import EngineMetrics

FinishReason = Literal["stop", "length", "abort"]

# Background load swells and ebbs around its mean, so that graphs of it are worth looking at.
_SWELL_SECONDS: Final = 60.0
_SWELL_RATIO: Final = 0.8
_PREFIX_CACHE_HIT_RATIO: Final = 0.4
# A stalled engine's queue must not grow for ever.
_BACKGROUND_WAITING_MOST: Final = 1_000


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the pretended hardware can do. The defaults give 20 tokens a second to each of at most 32 requests."""

    step_seconds: float = 0.05
    requests_running: int = 32
    kv_cache_tokens: int = 40_000
    model_tokens: int = 8_192


@dataclass(slots=True, eq=False)
class Request:
    """One generation. ``tokens_wanted`` is where it ends by itself, ``tokens_allowed`` where it is cut off; 0 is a
    prompt that is only read, as for an embedding."""

    prompt_tokens: int
    tokens_wanted: int
    tokens_allowed: int
    arrived: float = field(default_factory=time.monotonic)
    tokens_made: int = 0
    finish_reason: FinishReason | None = None
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def tokens_held(self) -> int:
        """Tokens it keeps in the KV cache."""
        return self.prompt_tokens + self.tokens_made


class Scheduler:
    """Admits requests in order of arrival while there is room, and gives each running one a token a step.

    While ``stalled``, requests are still accepted and nothing is done with them.
    """

    def __init__(
        self, limits: EngineLimits, metrics: EngineMetrics, requests_per_second: float, randomness: random.Random
    ) -> None:
        self.requests_per_second = requests_per_second
        self.stalled = False
        self._limits = limits
        self._metrics = metrics
        self._random = randomness
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []

    async def run(self) -> None:
        """Step until cancelled."""
        while True:
            started = time.monotonic()
            self._add_background_load(started)
            if self.stalled:
                self._show_load()
            else:
                self.step(started)
            await asyncio.sleep(max(0.0, started + self._limits.step_seconds - time.monotonic()))

    def step(self, now: float) -> None:
        """One iteration of the engine; it counts as one only when there was work."""
        self._running = [request for request in self._running if request.finish_reason is None]
        new = self._admit(now)
        generated = sum([self._advance(request, now) for request in self._running])
        if self._running:
            prefilled = sum(request.prompt_tokens for request in new)
            self._metrics.stepped(prefilled + generated, generated)
        self._show_load()

    def _show_load(self) -> None:
        unfinished = sum(request.finish_reason is None for request in self._running)
        self._metrics.load(unfinished, len(self._waiting), self._tokens_held() / self._limits.kv_cache_tokens)

    async def generate(self, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, int], None]:
        """Queue the requests of one answer, and yield which of them has how many new tokens until all are finished;
        leaving early aborts those that are not."""
        progress = asyncio.Event()
        for request in requests:
            request.progress = progress
        self._waiting.extend(requests)
        told = [0] * len(requests)
        try:
            while any(r.finish_reason is None or t < r.tokens_made for r, t in zip(requests, told, strict=True)):
                await progress.wait()
                progress.clear()
                for index, request in enumerate(requests):
                    new, told[index] = request.tokens_made - told[index], request.tokens_made
                    if new:
                        yield index, new
        finally:
            for request in requests:
                if request.finish_reason is None:
                    self._abort(request)

    def _admit(self, now: float) -> list[Request]:
        admitted: list[Request] = []
        held = self._tokens_held()
        while self._waiting and len(self._running) < self._limits.requests_running:
            held += self._waiting[0].tokens_held
            if self._running and held > self._limits.kv_cache_tokens:
                break
            request = self._waiting.popleft()
            hits = int(request.prompt_tokens * _PREFIX_CACHE_HIT_RATIO)
            self._metrics.admitted(request.prompt_tokens, hits, now - request.arrived)
            self._running.append(request)
            admitted.append(request)
        return admitted

    def _advance(self, request: Request, now: float) -> bool:
        """One step of a request; whether it made a token."""
        makes = request.tokens_allowed > 0
        request.tokens_made += makes
        if request.tokens_made == 1:
            self._metrics.first_token(now - request.arrived)
        if request.tokens_made >= request.tokens_wanted:
            request.finish_reason = "stop"
        elif request.tokens_made >= request.tokens_allowed:
            request.finish_reason = "length"
        if request.finish_reason is not None:
            self._metrics.finished(request.finish_reason, now - request.arrived)
        request.progress.set()
        return makes

    def _abort(self, request: Request) -> None:
        request.finish_reason = "abort"
        with contextlib.suppress(ValueError):
            self._waiting.remove(request)
        self._metrics.finished("abort", time.monotonic() - request.arrived)

    def _tokens_held(self) -> int:
        return sum(request.tokens_held for request in self._running if request.finish_reason is None)

    def _add_background_load(self, now: float) -> None:
        swell = 1.0 + _SWELL_RATIO * math.sin(2 * math.pi * now / _SWELL_SECONDS)
        expected = self.requests_per_second * swell * self._limits.step_seconds
        for _ in range(min(_poisson(expected, self._random), _BACKGROUND_WAITING_MOST - len(self._waiting))):
            self._waiting.append(synthetic_request(self._random, self._limits))


def synthetic_request(randomness: random.Random, limits: EngineLimits) -> Request:
    """A request nobody waits for, with the long-tailed lengths of chats."""
    prompt = min(int(randomness.lognormvariate(5.5, 0.8)) + 1, limits.model_tokens // 2)
    return Request(prompt, natural_tokens(randomness), limits.model_tokens - prompt)


def natural_tokens(randomness: random.Random) -> int:
    """How long an answer gets when nothing cuts it off."""
    return int(randomness.lognormvariate(4.0, 0.6)) + 1


def _poisson(expected: float, randomness: random.Random) -> int:
    """A Poisson variate, by Knuth's product; meant for small expectations."""
    limit, product, count = math.exp(-expected), randomness.random(), 0
    while product > limit:
        product *= randomness.random()
        count += 1
    return count
