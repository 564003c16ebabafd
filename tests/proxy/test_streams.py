"""Streams in every shape, and clients and engines that do not keep to the usual."""

import asyncio
import contextlib
import itertools
import json
import os
import random
from pathlib import Path

import aiohttp
import pytest

from proxy.relay.answer import MalformedAnswerError
from proxy.relay.events import Events
from proxy.relay.framing import Chunked, Sized
from proxy.relay.usage import usage_of_answer

MODEL = "acme/mock-model"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def data(**fields) -> bytes:
    return b"data: " + json.dumps({"object": "chat.completion.chunk"} | fields, ensure_ascii=False).encode() + b"\n\n"


def delta(text: str) -> bytes:
    return data(choices=[{"index": 0, "delta": {"content": text}}])


TOLD = data(choices=[], usage=USAGE)
DONE = b"data: [DONE]\n\n"
# The stream of an engine, and what the client gets who did not ask for the usage.
SHAPES = {
    "plain": (delta("a") + delta("b") + TOLD + DONE, delta("a") + delta("b") + DONE),
    "many bytes a letter": (delta("déjà 🚀") + TOLD + DONE, delta("déjà 🚀") + DONE),
    "comments": (
        b": ping\n\n" + delta("a") + b": ping\n\n" + TOLD + DONE,
        b": ping\n\n" + delta("a") + b": ping\n\n" + DONE,
    ),
    "no space after the colon": (
        (delta("a") + TOLD + DONE).replace(b"data: ", b"data:"),
        (delta("a") + DONE).replace(b"data: ", b"data:"),
    ),
    "CR LF": (
        (delta("a") + TOLD + DONE).replace(b"\n", b"\r\n"),
        (delta("a") + DONE).replace(b"\n", b"\r\n"),
    ),
    "CR": ((delta("a") + TOLD + DONE).replace(b"\n", b"\r"), (delta("a") + DONE).replace(b"\n", b"\r")),
    "other fields": (
        b"event: delta\nid: 1\nretry: 3\n" + delta("a") + b"id: 2\n" + TOLD + DONE,
        b"event: delta\nid: 1\nretry: 3\n" + delta("a") + DONE,
    ),
    "usage with the last choice": (
        data(choices=[{"index": 0, "delta": {}}], usage=USAGE) + DONE,
        data(choices=[{"index": 0, "delta": {}}], usage=USAGE) + DONE,
    ),
    "usage null in every event": (data(choices=[{}], usage=None) + TOLD + DONE, data(choices=[{}], usage=None) + DONE),
    "a text about usage": (delta('"usage" [DONE] "error"') + TOLD + DONE, delta('"usage" [DONE] "error"') + DONE),
    "done twice": (delta("a") + TOLD + DONE + DONE, delta("a") + DONE),
    "more after the end": (delta("a") + TOLD + DONE + delta("b"), delta("a") + DONE),
    "a byte order mark": (b"\xef\xbb\xbf" + delta("a") + TOLD + DONE, b"\xef\xbb\xbf" + delta("a") + DONE),
    "an event of nothing": (
        b"data\n\n" + delta("a") + b"data:\n\n" + TOLD + DONE,
        b"data\n\n" + delta("a") + b"data:\n\n" + DONE,
    ),
    "data in two lines": (
        b'data: {"choices": [],\ndata: "usage": ' + json.dumps(USAGE).encode() + b"}\n\n" + DONE,
        DONE,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_stream_may_be_cut_anywhere(name) -> None:
    """At every byte, and at many random ones at once."""
    sent, expected = SHAPES[name]
    randomness = random.Random(seed := random.randrange(2**32))
    print("seed", seed)
    cuts = [[at] for at in range(len(sent))] + [
        sorted(randomness.sample(range(len(sent)), min(len(sent), randomness.randrange(2, 30)))) for _ in range(200)
    ]
    cuts.append(list(range(len(sent))))
    for cut in cuts:
        events = Events(strips_usage=True, limit_bytes=10_000)
        edges = [0, *cut, len(sent)]
        got = [events.feed(sent[start:end]) for start, end in itertools.pairwise(edges)]
        assert b"".join(got) == expected, cut
        assert (events.done, events.is_between or events.done) == (True, True)
        assert (events.usage.read, events.usage.made) == (7, 2)


@pytest.mark.parametrize("name", SHAPES)
async def test_a_stream_of_every_shape_arrives(site, name) -> None:
    sent, expected = SHAPES[name]
    randomness = random.Random(seed := random.randrange(2**32))
    print("seed", seed)

    async def script(_, writer) -> None:
        writer.write(HEAD)
        rest = sent
        while rest:
            size = randomness.randrange(1, 40)
            piece, rest = rest[:size], rest[size:]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            if randomness.random() < 0.3:
                await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    await site.start()
    engine = await site.scripted(script)
    await site.worker(engine.url)
    await site.routed(1)
    for number in range(5):
        assert await site.chat(stream=True) == (200, expected), number
    records = await site.usage(5)
    assert {(record.prompt_tokens, record.completion_tokens) for record in records} == {(7, 2)}


async def test_a_client_that_asks_for_the_usage_gets_it_untouched(site) -> None:
    sent = SHAPES["plain"][0]

    async def script(_, writer) -> None:
        writer.write(HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(sent), sent))

    await site.start()
    engine = await site.scripted(script)
    await site.worker(engine.url)
    await site.routed(1)
    assert await site.chat(stream=True, stream_options={"include_usage": True}) == (200, sent)
    original = engine.requests[0][1]
    assert json.loads(original)["stream_options"] == {"include_usage": True}
    assert await site.chat(stream=True, stream_options={"include_usage": False, "x": 1}) == (200, SHAPES["plain"][1])
    assert json.loads(engine.requests[1][1])["stream_options"] == {"include_usage": True, "x": 1}


async def test_the_body_reaches_the_engine_as_it_came_when_nothing_must_change(site) -> None:
    await site.start()
    engine = await site.scripted()
    await site.worker(engine.url)
    await site.routed(1)
    body = b' {"model" :"acme/mock-model",\n"x": 1.50, "messages":[], "y": "\\u00e9"}\n'
    url = f"{site.url}/v1/chat/completions"
    async with site.session.post(url, data=body, headers=site.headers) as answer:
        assert (answer.status, await answer.read()) == (200, b"{}")
    await site.book.execute("INSERT INTO model_aliases SELECT 'fast', model_id FROM models")
    renamed = body.replace(b"acme/mock-model", b"fast")

    async def is_known() -> bool:
        async with site.session.post(url, data=renamed, headers=site.headers) as answer:
            return answer.status == 200

    await site.until(is_known, "the alias")
    assert engine.requests[0][1] == body
    assert engine.requests[-1][1] == b'{"model":"acme/mock-model","x":1.50,"messages":[],"y":"\\u00e9"}'


async def test_headers_of_one_connection_go_no_further(site) -> None:
    async def script(_, writer) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nX-Kept: yes\r\n"
            b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x\r\n"
            b"Set-Cookie: a=b\r\nServer: engine\r\nX-Request-Id: theirs\r\nUpgrade: h2c\r\n\r\n{}"
        )

    await site.start()
    engine = await site.scripted(script)
    await site.worker(engine.url)
    await site.routed(1)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    given = site.headers | {
        "Cookie": "secret=1",
        "X-Forwarded-For": "10.0.0.1",
        "Proxy-Authorization": "secret",
        "Connection": "keep-alive, X-Mine",
        "X-Mine": "secret",
        "TE": "trailers",
        "traceparent": trace,
        "tracestate": "vendor=1",
        "X-Request-Id": "req-7",
    }
    async with site.session.post(f"{site.url}/v1/completions", json={"model": MODEL}, headers=given) as answer:
        assert (answer.status, answer.headers["X-Kept"], answer.headers["X-Request-Id"]) == (200, "yes", "req-7")
        for name in ("X-Hop", "Keep-Alive", "Proxy-Authenticate", "Set-Cookie", "Server", "Upgrade"):
            assert name not in answer.headers
    head = engine.requests[0][0].decode()
    names = {line.partition(":")[0].lower() for line in head.split("\r\n")[1:] if line}
    assert names == {
        *("host", "content-type", "content-length", "accept", "accept-encoding", "x-request-id"),
        *("traceparent", "tracestate"),
    }
    assert f"traceparent: {trace}\r\n" in head
    assert "Accept-Encoding: identity\r\n" in head
    assert "X-Request-Id: req-7\r\n" in head
    assert site.key not in head
    async with site.session.post(
        f"{site.url}/v1/completions", json={"model": MODEL}, headers=site.headers | {"traceparent": "00-zz"}
    ):
        assert "traceparent: 00-" in engine.requests[1][0].decode()
        assert "00-zz" not in engine.requests[1][0].decode()


async def test_an_event_without_end_does_not_fill_the_memory(site) -> None:
    async def script(_, writer) -> None:
        writer.write(HEAD)
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                await writer.drain()

    await site.start(event_bytes=1_000_000)
    engine = await site.scripted(script)
    await site.worker(engine.url)
    await site.routed(1)
    status, body = await site.chat(stream=True)
    assert (status, body["error"]["code"]) == (502, "worker_failed")
    await site.until(lambda: engine.open == 0, "the engine's connection to be closed")


async def test_each_event_counts_however_many_come_in_a_chunk(site) -> None:
    """A server between engine and proxy may join them; when a stream breaks off, only events tell of its tokens."""
    role_and_tokens, tokens = delta("") + delta("a") * 2, delta("b") * 3

    async def script(_, writer) -> None:
        for head, events in ((HEAD, role_and_tokens), (b"", tokens)):
            writer.write(head + b"%x\r\n%b\r\n" % (len(events), events))
            await writer.drain()
            await asyncio.sleep(0.1)
        writer.close()

    await site.start()
    await site.worker((await site.scripted(script)).url)
    await site.routed(1)
    await site.chat(stream=True)
    (record,) = await site.usage(1)
    assert (record.outcome, record.token_source, record.completion_tokens) == ("broken", "counted", 5)


def test_events_of_one_byte_each_are_read_in_linear_time() -> None:
    events = Events(strips_usage=True, limit_bytes=10_000_000)
    for _ in range(300_000):
        assert events.feed(b"x") == b""
    with pytest.raises(MalformedAnswerError):
        events.feed(b"x" * 10_000_000)


def test_chunks_may_be_cut_anywhere() -> None:
    sent = b"4\r\nabcd\r\nA;ext=1\r\n0123456789\r\n1\r\n\n\r\n0\r\nTrailer: x\r\n\r\n"
    for at in range(len(sent) + 1):
        framing = Chunked()
        assert framing.feed(sent[:at]) + framing.feed(sent[at:]) == b"abcd0123456789\n"
        assert (framing.ended, framing.surplus) == (True, False)
    framing = Chunked()
    assert b"".join(framing.feed(bytes([byte])) for byte in sent + b"HTTP") == b"abcd0123456789\n"
    framing = Chunked()
    framing.feed(sent + b"HTTP")
    assert framing.surplus
    sized = Sized(3)
    assert (sized.feed(b"abcdef"), sized.ended, sized.surplus) == (b"abc", True, True)


USAGES = {
    b'{"usage": {"prompt_tokens": 3, "completion_tokens": 4}}': (3, 4),
    b'{"usage": {"input_tokens": 3, "output_tokens": 4}, "x": "}"}': (3, 4),
    b'{"usage": {"prompt_tokens": 3, "total_tokens": 3}}': (3, 0),
    b'{"usage": {"prompt_tokens": -3, "completion_tokens": 4}}': None,
    b'{"usage": {"prompt_tokens": 1e400}}': None,
    b'{"usage": "many"}': None,
    b'{"usage": null}': None,
    b"not json": None,
}


@pytest.mark.parametrize("body", USAGES)
def test_usage_is_read_from_the_whole_or_from_the_end(body) -> None:
    for tail, is_whole in ((body, True), (b'"usage", "a"], ' + body[1:], False)):
        usage = usage_of_answer(tail, is_whole)
        assert (usage and (usage.read, usage.made)) == USAGES[body]


async def test_a_large_answer_keeps_its_length_and_tells_its_usage(site) -> None:
    body = json.dumps({"data": [0.25] * 100_000, "usage": {"prompt_tokens": 12, "total_tokens": 12}}).encode()

    async def script(_, writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)

    await site.start()
    await site.worker((await site.scripted(script)).url)
    await site.routed(1)
    url = f"{site.url}/v1/embeddings"
    async with site.session.post(url, json={"model": MODEL, "input": "x"}, headers=site.headers) as answer:
        assert (answer.content_length, await answer.read()) == (len(body), body)
    (record,) = await site.usage(1)
    assert (record.prompt_tokens, record.completion_tokens, record.outcome) == (12, 0, "completed")


async def test_a_stream_of_responses_needs_no_done(site) -> None:
    last = b'event: response.completed\ndata: {"response": {"usage": {"input_tokens": 5, "output_tokens": 6}}}\n\n'

    async def script(_, writer) -> None:
        writer.write(HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))

    await site.start()
    engine = await site.scripted(script)
    await site.worker(engine.url)
    await site.routed(1)
    body = {"model": MODEL, "input": "x", "stream": True}
    async with site.session.post(f"{site.url}/v1/responses", json=body, headers=site.headers) as answer:
        assert await answer.read() == last
    assert "stream_options" not in json.loads(engine.requests[0][1])
    (record,) = await site.usage(1)
    assert (record.prompt_tokens, record.completion_tokens, record.outcome) == (5, 6, "completed")


@pytest.mark.parametrize(
    ("last", "ends"),
    [
        (b'data: {"type": "response.completed"}\n\n', True),
        (b'event: response.incomplete\ndata: {"type": "x"}\n\n', True),
        (b'data: {"type": "response.output_text.delta", "delta": "response.completed"}\n\n', False),
        (b'event: response.output_text.delta\ndata: {"delta": "event: response.completed"}\n\n', False),
        (b'data: {"type": "response.completed"}\n\ndata: {"type": "x"}\n\n', False),
        (b"data: response.completed\n\n", False),
    ],
)
def test_the_end_of_a_response_is_an_event_not_a_word(last, ends) -> None:
    for before in (b"", b"data: {}\n\n"):
        events = Events(False, 1_000)
        events.feed(before + last)
        assert events.ends_response is ends
    events = Events(False, 1_000)
    assert events.passes_whole(b"%x\r\n%b\r\n" % (len(last), last))
    assert events.ends_response is ends


async def test_servers_in_front_are_told_not_to_collect_a_stream(site) -> None:
    """nginx does by itself, and then all events come at once."""

    async def script(_, writer) -> None:
        own = HEAD.replace(b"\r\n\r\n", b"\r\nCache-Control: no-store\r\n\r\n")
        writer.write(own + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    await site.start()
    await site.worker((await site.scripted(script)).url)
    await site.routed(1)
    body = {"model": MODEL, "stream": True}
    async with site.session.post(f"{site.url}/v1/completions", json=body, headers=site.headers) as answer:
        assert answer.headers.getall("X-Accel-Buffering") == ["no"]
        assert answer.headers.getall("Cache-Control") == ["no-store"]


@pytest.mark.parametrize("last", [b"", b"data: [DONE]\n\n", b"data: {}\n\nevent: response.failed\ndata: {}\n\n"])
async def test_a_stream_of_responses_that_ends_too_early_is_told(site, last) -> None:
    sent = b'event: response.output_text.delta\ndata: {"delta": "x"}\n\n' + last

    async def script(_, writer) -> None:
        writer.write(HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(sent), sent))

    await site.start()
    await site.worker((await site.scripted(script)).url)
    await site.routed(1)
    body = {"model": MODEL, "input": "x", "stream": True}
    received = bytearray()
    async with site.session.post(f"{site.url}/v1/responses", json=body, headers=site.headers) as answer:
        with contextlib.nullcontext() if last else pytest.raises(aiohttp.ClientPayloadError):
            async for piece in answer.content.iter_any():
                received += piece
    assert received.startswith(sent)
    assert (b"stream_broken" in received) is not bool(last)
    (record,) = await site.usage(1)
    assert record.outcome == ("completed" if last else "broken")


async def test_a_client_of_http_1_0_gets_a_stream_without_chunks(site) -> None:
    await site.start()
    await site.worker(await site.engine())
    await site.routed(1)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    body = json.dumps({"model": MODEL, "messages": [{"content": "x"}], "stream": True, "max_tokens": 3}).encode()
    writer.write(
        f"POST /v1/chat/completions HTTP/1.0\r\nAuthorization: Bearer {site.key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    async with asyncio.timeout(10):
        head, _, events = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b"chunked" not in head.lower()
    assert events.startswith(b"data: {")
    assert events.endswith(DONE)


async def test_a_silent_stream_carries_comments(site) -> None:
    go_on = asyncio.Event()

    async def script(_, writer) -> None:
        writer.write(HEAD + b"%x\r\n%b\r\n" % (len(delta("a")), delta("a")))
        await go_on.wait()
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE))

    await site.start(keep_alive_seconds=0.1)
    await site.worker((await site.scripted(script)).url)
    await site.routed(1)
    url, body = f"{site.url}/v1/chat/completions", {"model": MODEL, "messages": [], "stream": True}
    async with site.session.post(url, json=body, headers=site.headers) as answer:
        received = b""
        while received.count(b": keep-alive\n\n") < 3:
            received += await answer.content.readany()
        go_on.set()
        received += await answer.read()
    assert received.replace(b": keep-alive\n\n", b"") == delta("a") + DONE


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_client_that_does_not_read_costs_no_memory_and_is_given_up(site) -> None:
    sent = 0

    async def script(_, writer) -> None:
        nonlocal sent
        writer.write(HEAD)
        piece = delta("x" * 65_000)
        with contextlib.suppress(ConnectionError):
            while sent < 2_000_000_000:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
                sent += len(piece)
        raise ConnectionResetError

    await site.start(write_timeout_seconds=1.0)
    engine = await site.scripted(script)
    await site.worker(engine.url)
    await site.routed(1)
    before = resident_bytes()
    _, writer = await asyncio.open_connection("127.0.0.1", site.port, limit=1024)
    body = json.dumps({"model": MODEL, "messages": [], "stream": True}).encode()
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    await site.until(lambda: engine.open == 1, "the request at the engine")
    await site.until(lambda: engine.open == 0, "the engine to be let go")
    assert sent < 30_000_000
    assert resident_bytes() - before < 40_000_000
    writer.close()
    (record,) = await site.usage(1)
    assert record.outcome == "cancelled"


async def test_a_slow_client_gets_everything(site) -> None:
    pieces = [delta(str(number) * 5_000) for number in range(400)]

    async def script(_, writer) -> None:
        writer.write(HEAD)
        for piece in pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE))

    await site.start()
    await site.worker((await site.scripted(script)).url)
    await site.routed(1)
    url, body = f"{site.url}/v1/chat/completions", {"model": MODEL, "messages": [], "stream": True}
    received = bytearray()
    async with site.session.post(url, json=body, headers=site.headers, read_bufsize=2048) as answer:
        async for piece in answer.content.iter_any():
            received += piece
            if len(received) < 1_000_000:
                await asyncio.sleep(0.001)
    assert bytes(received) == b"".join(pieces) + DONE
