"""The mock engine's HTTP interface, as vLLM's OpenAI-compatible server has it."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from fleetpulse.http import serving
from fleetpulse.local.mock_engine.answers import Answer, event, words
from fleetpulse.local.mock_engine.metrics import EngineMetrics
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


_ENGINE: Final = web.AppKey("engine", MockEngine)


def application(engine: MockEngine) -> web.Application:
    """The server's routes. Two are ours: ``POST /mock/load`` sets the background load, ``POST /mock/state`` has the
    engine stall or load its model for as long as it is told to."""
    app = web.Application(middlewares=[_unready_while_loading], client_max_size=BODY_BYTES)
    app[_ENGINE] = engine
    app.router.add_get("/health", _health)
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/completions", _completions)
    app.router.add_post("/v1/chat/completions", _completions)
    app.router.add_post("/mock/load", _load)
    app.router.add_post("/mock/state", _state)
    return app


@web.middleware
async def _unready_while_loading(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.app[_ENGINE].loading and not request.path.startswith("/mock/"):
        return web.Response(status=503)
    return await handler(request)


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


async def _completions(http: web.Request) -> web.StreamResponse:
    engine = http.app[_ENGINE]
    try:
        asked = await http.json()
    except ValueError:
        return _refusal("the body is not JSON")
    if not isinstance(asked, dict):
        return _refusal("the body must be a JSON object")
    if asked.get("model") not in (engine.model, None):
        return _refusal(f"The model `{asked['model']}` does not exist.", 404)
    chat = http.path.endswith("/chat/completions")
    text = _prompt(asked, chat)
    if text is None:
        return _refusal("messages must be a list of objects" if chat else "prompt is missing")
    allowed = asked.get("max_completion_tokens") or asked.get("max_tokens") or (None if chat else 16)
    if allowed is not None and (not isinstance(allowed, int) or allowed < 1):
        return _refusal("max_tokens must be at least 1")
    prompt_tokens = max(1, len(text.split()))
    room = engine.limits.model_tokens - prompt_tokens
    if room < 1:
        return _refusal(f"the model's context holds {engine.limits.model_tokens} tokens, the prompt {prompt_tokens}")
    wanted = engine.limits.model_tokens if asked.get("ignore_eos") else natural_tokens(engine.randomness)
    request = Request(prompt_tokens, wanted, min(room, allowed or room))
    answer = Answer(engine.model, chat, request)
    # Closed, not left to the garbage collector: a client that hangs up aborts its request at once.
    async with contextlib.aclosing(engine.scheduler.generate(request)) as tokens:
        if asked.get("stream"):
            with_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
            return await _stream(http, answer, tokens, with_usage)
        made = [new async for new in tokens]
    return web.json_response(answer.whole(words(0, sum(made))))


def _prompt(asked: dict[str, Any], chat: bool) -> str | None:
    """The text to count tokens of; None when the request has none."""
    if not chat:
        prompt = asked.get("prompt")
        return prompt if isinstance(prompt, str) else None
    messages = asked.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return None
    return " ".join(str(message.get("content", "")) for message in messages)


async def _stream(
    http: web.Request, answer: Answer, tokens: AsyncIterator[int], with_usage: bool
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(http)
    told = 0
    async for new in tokens:
        # As vLLM: not before there is something to tell, so that waiting requests show in the first token's time.
        if answer.chat and told == 0:
            await response.write(event(answer.chunk("", role="assistant")))
        last = answer.request.finish_reason if answer.request.tokens_made == told + new else None
        await response.write(event(answer.chunk(words(told, new), finish_reason=last)))
        told += new
    if with_usage:
        await response.write(event(answer.shell(streaming=True) | {"choices": [], "usage": answer.usage()}))
    await response.write(b"data: [DONE]\n\n")
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
