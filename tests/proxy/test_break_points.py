"""Twelve ways in which an engine can fail a request, and what becomes of it: before the first event another worker
answers, after it the client is told, in the stream and by how the connection ends."""

import asyncio
import json
import socket
import struct

import aiohttp
import openai
import pytest

from proxy.relay.attempts import Budget

MODEL = "acme/mock-model"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + CHUNKED + b"\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str) -> bytes:
    told = {"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]}
    return b"data: " + json.dumps(told).encode() + b"\n\n"


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def sends(*pieces: bytes, then: str = "keep"):
    """A script: send the pieces one by one, then keep the connection, hang, or reset it."""

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await send(writer, pieces)
        if then == "hang":
            await asyncio.sleep(3600)
        elif then == "reset":
            reset(writer)
            raise ConnectionResetError

    return script


async def send(writer: asyncio.StreamWriter, pieces) -> None:
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        # So that each arrives by itself.
        await asyncio.sleep(0.002)


def closes(*pieces: bytes):
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await send(writer, pieces)
        writer.close()
        await writer.wait_closed()
        raise ConnectionResetError

    return script


WELL = sends(HEAD, chunk(event("well")), chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
FAILED = b'{"error": {"message": "CUDA error", "type": "InternalServerError", "code": 500}}'


def pings(*pieces: bytes):
    """A comment now and then, for ever."""

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await send(writer, pieces)
        while True:
            await send(writer, [chunk(b": ping\n\n")])
            await asyncio.sleep(0.05)

    return script


# What the client has not seen the beginning of.
BEFORE = {
    "reset before the head": sends(then="reset"),
    "end before the head": closes(),
    "end within the head": closes(b"HTTP/1.1 200 OK\r\nContent-"),
    "silence before the head": sends(then="hang"),
    "head and then silence": sends(HEAD, then="hang"),
    "status 500": sends(b"HTTP/1.1 500 Oops\r\nContent-Length: %d\r\n\r\n%b" % (len(FAILED), FAILED)),
    "status 503": sends(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"),
    "status 429": sends(b"HTTP/1.1 429 Full\r\nContent-Length: 0\r\n\r\n"),
    "reset after the head": sends(HEAD, then="reset"),
    "end after the head": closes(HEAD),
    "reset within the first event": sends(HEAD, chunk(event("x"))[:20], then="reset"),
    "an empty stream": sends(HEAD + b"0\r\n\r\n"),
}
# What it has.
AFTER = {
    "reset within an event": sends(HEAD, chunk(event("one")), chunk(event("two"))[:20], then="reset"),
    "reset between events": sends(HEAD, chunk(event("one")), then="reset"),
    "end between events": closes(HEAD, chunk(event("one"))),
    "end of the body without [DONE]": sends(HEAD, chunk(event("one")) + b"0\r\n\r\n"),
    "end within a chunk": closes(HEAD, chunk(event("one")), b"40\r\ndata: "),
    "end within an event, the body whole": sends(HEAD, chunk(event("one")), chunk(b"data: {") + b"0\r\n\r\n"),
    "stall": sends(HEAD, chunk(event("one")), then="hang"),
    "a chunk that is no chunk": sends(HEAD, chunk(event("one")), b"zz\r\n"),
    "a chunk longer than it says": sends(HEAD, chunk(event("one")), b"2\r\nxxxx\r\n"),
    "end of a body that ends with its connection": closes(HEAD.replace(CHUNKED, b""), event("one")),
    "end before the length": closes(HEAD.replace(CHUNKED, b"Content-Length: 999\r\n"), event("one")),
    "end without [DONE] of a body with a length": sends(
        HEAD.replace(CHUNKED, b"Content-Length: %d\r\n" % len(event("one"))) + event("one")
    ),
    "pings without an end": pings(HEAD, chunk(event("one"))),
}
TIMEOUTS = {"first_byte_timeout_seconds": 0.4, "chunk_timeout_seconds": 0.4, "connect_timeout_seconds": 0.3}


async def two_workers(site, script, **settings):
    """A worker that fails and one that does not; the first is tried first."""
    await site.start(**(TIMEOUTS | settings))
    failing, well = await site.scripted(script), await site.scripted(WELL)
    await site.worker(failing.url)
    await site.worker(well.url, waiting=5)
    await site.routed(2)
    return failing, well


@pytest.mark.parametrize("name", BEFORE)
async def test_a_failure_before_the_first_event_is_not_the_clients(site, name) -> None:
    failing, _ = await two_workers(site, BEFORE[name])
    status, body = await site.chat(stream=True)
    assert (status, body) == (200, event("well") + b"data: [DONE]\n\n")
    assert len(failing.requests) == 1
    first, second = await site.usage(2)
    assert (first.outcome, first.attempt, second.outcome, second.attempt) in (
        ("failed", 1, "completed", 2),
        ("refused", 1, "completed", 2),
    )
    assert first.request_id == second.request_id


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://nobody.invalid:1"])
async def test_an_address_without_an_engine_is_not_the_clients_failure(site, url) -> None:
    await site.start(**TIMEOUTS)
    await site.worker(url)
    await site.worker((await site.scripted(WELL)).url, waiting=5)
    await site.routed(2)
    assert (await site.chat(stream=True))[1].endswith(b"[DONE]\n\n")
    # No engine saw the first attempt.
    (record,) = await site.usage(1)
    assert record.attempt == 2


async def test_a_connection_that_nobody_accepts_is_not_the_clients_failure(site) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        # One connection fills the queue; further ones get no answer.
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        await site.start(**TIMEOUTS)
        await site.worker(f"http://127.0.0.1:{full.getsockname()[1]}")
        await site.worker((await site.scripted(WELL)).url, waiting=5)
        await site.routed(2)
        assert (await site.chat(stream=True))[1].endswith(b"[DONE]\n\n")
        for filler in fillers:
            filler.close()


async def read_into(received: bytearray, answer: aiohttp.ClientResponse) -> None:
    async for piece in answer.content.iter_any():
        received += piece


@pytest.mark.parametrize("name", AFTER)
async def test_a_broken_stream_ends_with_an_error_and_without_an_end(site, name) -> None:
    # Pauses of the engine end by their own limit, what never ends by that of the whole request.
    failing, well = await two_workers(site, AFTER[name], total_timeout_seconds=1.0)
    url, body = f"{site.url}/v1/chat/completions", {"model": MODEL, "stream": True, "messages": []}
    received = bytearray()
    async with site.session.post(url, json=body, headers=site.headers) as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await read_into(received, answer)
    first, error, rest = bytes(received).replace(b": ping\n\n", b"").split(b"\n\n")
    assert (first + b"\n\n", rest) == (event("one"), b"")
    told = json.loads(error.removeprefix(b"data: "))["error"]
    assert (told["code"], told["correlation_id"]) == ("stream_broken", answer.headers["X-Request-Id"])
    assert (len(failing.requests), len(well.requests)) == (1, 0)
    (record,) = await site.usage(1)
    assert (record.outcome, record.status, record.token_source) == ("broken", 200, "counted")


async def test_the_sdk_raises_at_a_broken_stream(site) -> None:
    await two_workers(site, AFTER["reset between events"])
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=site.key, max_retries=0) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=[], stream=True)
        assert (await anext(stream)).choices[0].delta.content == "one"
        with pytest.raises(openai.APIError, match="broke off"):
            await anext(stream)


# As engines and gateways tell of errors in streams.
TOLD = {
    "OpenAI": b'data: {"error": {"message": "out of memory", "code": 500}}\n\n',
    "vLLM, of old": b'data: {"object": "error", "message": "out of memory", "code": 500}\n\n',
    "with a name": b'event: error\ndata: {"error": "out of memory"}\n\n',
    "with choices": b'data: {"choices": [], "error": {"message": "out of memory"}}\n\n',
    "responses": b'event: error\ndata: {"type": "error", "code": "server_error", "message": "out of memory"}\n\n',
}


@pytest.mark.parametrize("before", [b"", event("one")])
async def test_an_engines_own_error_event_ends_the_stream_as_broken(site, before) -> None:
    await site.start(**TIMEOUTS)
    done = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    scripts = [sends(HEAD, chunk(before) if before else b"", chunk(told), done) for told in TOLD.values()]
    await site.worker((await site.scripted(*scripts)).url)
    await site.routed(1)
    for name, told in TOLD.items():
        assert (name, await site.chat(stream=True)) == (name, (200, before + told))
    assert {record.outcome for record in await site.usage(len(TOLD))} == {"broken"}


async def test_a_refusal_by_an_engine_is_the_answer(site) -> None:
    """501 too: what this engine cannot do, it can do no better elsewhere, and it is no failure of the worker."""
    refusals = (400, 401, 404, 408, 422, *(501,) * 6)
    head = b"HTTP/1.1 %d No\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    await site.start(**TIMEOUTS)
    refusing, well = await site.scripted(*(sends(head % status) for status in refusals)), await site.scripted(WELL)
    await site.worker(refusing.url)
    await site.worker(well.url, waiting=5)
    await site.routed(2)
    assert [await site.chat(stream=True) for _ in refusals] == [(status, {}) for status in refusals]
    assert (len(refusing.requests), len(well.requests)) == (len(refusals), 0)
    assert await site.metric("fleetpulse_proxy_ejections_total") == 0


def test_retries_after_answers_are_a_share_of_all_requests() -> None:
    budget = Budget(share=0.2)
    assert sum(budget.take() for _ in range(1_000)) == 10
    for _ in range(100):
        budget.request()
    assert sum(budget.take() for _ in range(1_000)) in (19, 20)


async def test_what_comes_after_an_answer_is_no_answer_to_the_next_request(site) -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n"
    late = asyncio.Event()

    async def too_late(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(whole + b'{"a":2}')
        await late.wait()
        writer.write(whole + b'{"x":0}')

    await site.start(**TIMEOUTS)
    engine = await site.scripted(sends(whole + b'{"a":1}' + whole + b'{"x":0}'), too_late, sends(whole + b'{"a":3}'))
    await site.worker(engine.url)
    await site.routed(1)
    assert [await site.chat() for _ in range(2)] == [(200, {"a": 1}), (200, {"a": 2})]
    late.set()
    await site.until(lambda: engine.open == 0, "the connection to be closed")
    assert await site.chat() == (200, {"a": 3})


async def test_an_answer_in_one_piece_that_breaks_off_is_tried_elsewhere(site) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    await site.start(**TIMEOUTS)
    await site.worker((await site.scripted(closes(head + b'{"choices": ['))).url)
    await site.worker(await site.engine(), waiting=5)
    await site.routed(2)
    status, body = await site.chat()
    assert (status, body["usage"]["completion_tokens"]) == (200, 8)


async def test_a_large_answer_that_breaks_off_ends_without_an_end(site) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    await two_workers(site, closes(head + b"[" * 200_000))
    body = {"model": MODEL, "input": "x"}
    async with site.session.post(f"{site.url}/v1/embeddings", json=body, headers=site.headers) as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    (record,) = await site.usage(1)
    assert record.outcome == "broken"


async def test_when_all_fail_the_client_hears_of_the_last(site) -> None:
    await site.start(**TIMEOUTS, ejection_failures=100)
    for script in (BEFORE["status 500"], BEFORE["status 503"]):
        await site.worker((await site.scripted(script)).url)
    await site.routed(2)
    status, body = await site.chat()
    assert (status, body["error"]["code"]) in ((502, "worker_failed"), (503, "worker_failed"))


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("status 500", 502, "worker_failed"),
        ("status 503", 503, "worker_failed"),
        ("reset before the head", 502, "worker_failed"),
        ("silence before the head", 504, "worker_timeout"),
        ("an empty stream", 502, "worker_failed"),
    ],
)
async def test_what_the_only_worker_does_wrong_is_a_gateways_status(site, name, status, code) -> None:
    await site.start(**TIMEOUTS)
    await site.worker((await site.scripted(BEFORE[name])).url)
    await site.routed(1)
    got, body = await site.chat(stream=True)
    assert (got, body["error"]["code"]) == (status, code)


async def test_a_request_that_kills_engines_is_not_handed_round(site) -> None:
    await site.start(**TIMEOUTS, attempts=10)

    # Longer than a connection takes to be found closed.
    async def dies(reader, writer) -> None:
        await asyncio.sleep(0.15)
        reset(writer)
        raise ConnectionResetError

    engines = [await site.scripted(dies) for _ in range(5)]
    for engine in engines:
        await site.worker(engine.url)
    await site.routed(5)
    assert (await site.chat())[0] == 502
    assert sum(len(engine.requests) for engine in engines) == 2


async def test_a_kept_connection_that_the_engine_has_closed_is_no_failure(site) -> None:
    """Engines close connections on their own timers, and at times just when a request is on its way."""
    body = b'{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}'
    well = sends(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    await site.start(**TIMEOUTS)
    engine = await site.scripted(well, sends(then="reset"), well)
    await site.worker(engine.url)
    await site.routed(1)
    assert [(await site.chat())[0] for _ in range(2)] == [200, 200]
    assert (engine.connections, len(engine.requests)) == (2, 3)
    assert len(await site.usage(2)) == 2
