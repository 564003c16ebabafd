"""The mock engine's HTTP interface, as vLLM's OpenAI-compatible server has it."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from fleetpulse.http import serving
from fleetpulse.local.mock_engine import asked as asking
from fleetpulse.local.mock_engine.answers import Answer, embeddings, event, words
from fleetpulse.local.mock_engine.asked import Generation, RefusedError, prompt_tokens
from fleetpulse.local.mock_engine.metrics import EngineMetrics
from fleetpulse.local.mock_engine.responses import ResponseAnswer
from fleetpulse.local.mock_engine.scheduler import EngineLimits, Request, Scheduler, natural_tokens
from fleetpulse.tasks import end

# Engines hold prompts to the model's context, not to a number of bytes.
BODY_BYTES: Final = 1 << 28


@dataclass(slots=True)
class MockEngine:
    """What the handlers need. While ``loading``, the model is not there yet and every answer is 503."""

    model: str
    limits: EngineLimits
    scheduler: Scheduler
    registry: CollectorRegistry
    randomness: random.Random
    loading: bool = False

    def requests(self, wanted: Generation) -> list[Request]:
        """One for each choice of each prompt, in the order of vLLM's choices."""
        return [
            Request(
                prompt_tokens(prompt, self.limits),
                self.limits.model_tokens if wanted.is_endless else natural_tokens(self.randomness),
                room,
            )
            for prompt, room in zip(wanted.prompts, wanted.room, strict=True)
            for _ in range(wanted.choices)
        ]


_ENGINE: Final = web.AppKey("engine", MockEngine)


def application(engine: MockEngine) -> web.Application:
    """The server's routes. Two are ours: ``POST /mock/load`` sets the background load, ``POST /mock/state`` has the
    engine stall or load its model for as long as it is told to."""
    app = web.Application(middlewares=[_answer], client_max_size=BODY_BYTES)
    app[_ENGINE] = engine
    app.router.add_get("/health", _health)
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/completions", _completion)
    app.router.add_post("/v1/chat/completions", _chat)
    app.router.add_post("/v1/responses", _responses)
    app.router.add_post("/v1/embeddings", _embeddings)
    app.router.add_post("/mock/load", _load)
    app.router.add_post("/mock/state", _state)
    return app


@web.middleware
async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.app[_ENGINE].loading and not request.path.startswith("/mock/"):
        return web.Response(status=503)
    try:
        return await handler(request)
    except RefusedError as refused:
        return _refusal(str(refused), refused.status)


async def _health(_: web.Request) -> web.Response:
    return web.Response()


async def _metrics(http: web.Request) -> web.Response:
    encode, content_type = choose_encoder(http.headers.get("Accept", ""))
    return web.Response(body=encode(http.app[_ENGINE].registry), headers={"Content-Type": content_type})


async def _models(http: web.Request) -> web.Response:
    engine = http.app[_ENGINE]
    card = {
        "id": engine.model,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "vllm",
        "root": engine.model,
        "parent": None,
        "max_model_len": engine.limits.model_tokens,
    }
    return web.json_response({"object": "list", "data": [card]})


async def _load(http: web.Request) -> web.Response:
    engine = http.app[_ENGINE]
    try:
        asked = float((await http.json())["requests_per_second"])
    except (ValueError, TypeError, KeyError):
        return _refusal('the body must be {"requests_per_second": NUMBER}')
    if not 0 <= asked <= 1_000:
        return _refusal("requests_per_second must be between 0 and 1000")
    engine.scheduler.requests_per_second = asked
    return web.json_response({"requests_per_second": asked})


async def _state(http: web.Request) -> web.Response:
    engine = http.app[_ENGINE]
    try:
        asked = await http.json()
    except ValueError:
        asked = None
    if not isinstance(asked, dict) or not all(
        name in ("stalled", "loading") and isinstance(value, bool) for name, value in asked.items()
    ):
        return _refusal('the body must be {"stalled": true or false, "loading": true or false}, or one of them')
    engine.scheduler.stalled = asked.get("stalled", engine.scheduler.stalled)
    engine.loading = asked.get("loading", engine.loading)
    return web.json_response({"stalled": engine.scheduler.stalled, "loading": engine.loading})


def _refusal(text: str, status: int = 400) -> web.Response:
    kind = "NotFoundError" if status == 404 else "BadRequestError"
    return web.json_response({"error": {"message": text, "type": kind, "param": None, "code": status}}, status=status)


async def _chat(http: web.Request) -> web.StreamResponse:
    engine = http.app[_ENGINE]
    asked = await asking.read(http, engine.model)
    return await _complete(http, asking.chat(asked, engine.limits), is_chat=True)


async def _completion(http: web.Request) -> web.StreamResponse:
    engine = http.app[_ENGINE]
    asked = await asking.read(http, engine.model)
    return await _complete(http, asking.completion(asked, engine.limits), is_chat=False)


async def _complete(http: web.Request, wanted: Generation, is_chat: bool) -> web.StreamResponse:
    engine = http.app[_ENGINE]
    requests = engine.requests(wanted)
    answer = Answer(engine.model, is_chat, requests, wanted.choices)
    # Closed, not left to the garbage collector: a client that hangs up aborts its requests at once.
    async with contextlib.aclosing(engine.scheduler.generate(requests)) as tokens:
        if wanted.is_stream:
            return await _stream(http, _chunks(answer, tokens, wanted.wants_usage))
        await _all(tokens)
    return web.json_response(answer.whole())


async def _chunks(
    answer: Answer, tokens: AsyncIterator[tuple[int, int]], with_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The events of a stream of a chat or completion."""
    told = [0] * len(answer.requests)
    async for index, new in tokens:
        # As vLLM: not before there is something to tell, so that waiting requests show in the first token's time.
        if answer.chat and not told[index]:
            yield event(answer.chunk(index, "", role="assistant"))
        request = answer.requests[index]
        last = request.finish_reason if request.tokens_made == told[index] + new else None
        yield event(answer.chunk(index, words(told[index], new), finish_reason=last))
        told[index] += new
    if with_usage:
        yield event(answer.shell(streaming=True) | {"choices": [], "usage": answer.usage()})
    yield b"data: [DONE]\n\n"


async def _responses(http: web.Request) -> web.StreamResponse:
    engine = http.app[_ENGINE]
    asked = await asking.read(http, engine.model)
    wanted = asking.response(asked, engine.limits)
    requests = engine.requests(wanted)
    answer = ResponseAnswer(engine.model, asked, requests[0])
    async with contextlib.aclosing(engine.scheduler.generate(requests)) as tokens:
        if wanted.is_stream:
            return await _stream(http, _response_events(answer, tokens))
        await _all(tokens)
    return web.json_response(answer.whole())


async def _response_events(
    answer: ResponseAnswer, tokens: AsyncIterator[tuple[int, int]]
) -> AsyncGenerator[bytes, None]:
    """The events of a stream of /v1/responses."""
    told = 0
    async for _, new in tokens:
        if not told:
            for begun in answer.begin():
                yield begun
        yield answer.delta(words(told, new))
        told += new
    for ended in answer.end():
        yield ended


async def _embeddings(http: web.Request) -> web.StreamResponse:
    engine = http.app[_ENGINE]
    asked = await asking.read(http, engine.model)
    dimensions, is_base64 = asking.embedding(asked)
    texts = asking.texts(asked, "input")
    requests = [Request(asking.prompt_tokens(text, engine.limits), 0, 0) for text in texts]
    async with contextlib.aclosing(engine.scheduler.generate(requests)) as tokens:
        await _all(tokens)
    return web.json_response(embeddings(engine.model, texts, requests, dimensions, is_base64))


async def _all(tokens: AsyncIterator[tuple[int, int]]) -> None:
    async for _ in tokens:
        pass


async def _stream(http: web.Request, events: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(http)
    async with contextlib.aclosing(events):
        async for one in events:
            await response.write(one)
    await response.write_eof()
    return response


@contextlib.asynccontextmanager
async def mock_engine(
    port: int,
    model: str = "mock-model",
    requests_per_second: float = 0.0,
    limits: EngineLimits | None = None,
    host: str = "127.0.0.1",
    seed: int | None = None,
    stalled: bool = False,
    loading: bool = False,
) -> AsyncIterator[int]:
    """Serve a mock engine while the block runs; yields its port. Raises OSError when the port is taken."""
    registry, randomness, limits = CollectorRegistry(), random.Random(seed), limits or EngineLimits()
    scheduler = Scheduler(limits, EngineMetrics(registry, model), requests_per_second, randomness)
    scheduler.stalled = stalled
    engine = MockEngine(model, limits, scheduler, registry, randomness, loading)
    stepping = asyncio.create_task(scheduler.run(), name="mock-engine-steps")
    try:
        async with serving(application(engine), host, port) as used:
            yield used
    finally:
        await end(stepping)
