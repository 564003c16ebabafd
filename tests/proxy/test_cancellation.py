"""A client that leaves takes its request with it, in every phase."""

import asyncio
import json
import socket
import time

import pytest

MODEL = "acme/mock-model"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'


async def hangs(reader, writer, *pieces: bytes) -> None:
    for piece in pieces:
        writer.write(piece)
    # Ends when the other side closes.
    await reader.read()
    raise ConnectionResetError


async def before_the_head(reader, writer) -> None:
    await hangs(reader, writer)


async def before_the_first_event(reader, writer) -> None:
    await hangs(reader, writer, HEAD)


async def within_the_first_event(reader, writer) -> None:
    await hangs(reader, writer, HEAD, b"%x\r\n%b" % (len(EVENT), EVENT[:10]))


async def within_the_stream(reader, writer) -> None:
    await hangs(reader, writer, HEAD, b"%x\r\n%b\r\n" % (len(EVENT), EVENT))


async def within_an_answer_in_one_piece(reader, writer) -> None:
    await hangs(reader, writer, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")


PHASES = [
    before_the_head,
    before_the_first_event,
    within_the_first_event,
    within_the_stream,
    within_an_answer_in_one_piece,
]


async def ask(site, stream: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    body = json.dumps({"model": MODEL, "messages": [], "stream": stream}).encode()
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return reader, writer


def leaves_politely(writer: asyncio.StreamWriter) -> None:
    writer.close()


def leaves_at_once(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


def stops_sending(writer: asyncio.StreamWriter) -> None:
    writer.write_eof()


@pytest.mark.parametrize("leave", [leaves_politely, leaves_at_once, stops_sending])
@pytest.mark.parametrize("phase", PHASES)
async def test_the_engine_is_let_go(site, phase, leave) -> None:
    await site.start()
    engine = await site.scripted(phase)
    await site.worker(engine.url)
    await site.routed(1)
    reader, writer = await ask(site, stream=phase is not within_an_answer_in_one_piece)
    await site.until(lambda: len(engine.requests) == 1, "the request at the engine")
    if phase is within_the_stream:
        await reader.readuntil(b"x")
    left = time.monotonic()
    leave(writer)
    await site.until(lambda: engine.open == 0, "the engine to be let go")
    # Twenty milliseconds, and what busy cores add; where the client is not noticed, a minute.
    assert time.monotonic() - left < 5
    writer.close()
    (record,) = await site.usage(1)
    assert record.outcome == "cancelled"
    assert record.completion_tokens == (0 if phase is within_the_stream else None)
    assert await site.metric("fleetpulse_proxy_requests_in_flight") == 0
    assert await site.metric('fleetpulse_proxy_workers{are="ejected"}') == 0


@pytest.mark.parametrize("leave", [leaves_politely, leaves_at_once])
async def test_a_client_that_reads_too_slowly_and_leaves_is_noticed(site, leave) -> None:
    sent, seen = 0, -1

    async def firehose(_, writer) -> None:
        nonlocal sent
        writer.write(HEAD)
        piece = b"data: " + b"x" * 65_000 + b"\n\n"
        while True:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            sent += len(piece)

    def is_stuck() -> bool:
        nonlocal seen
        before, seen = seen, sent
        return 0 < before == sent

    await site.start()
    engine = await site.scripted(firehose)
    await site.worker(engine.url)
    await site.routed(1)
    _, writer = await ask(site)
    await site.until(is_stuck, "the stream to stand still")
    leave(writer)
    await site.until(lambda: engine.open == 0, "the engine to be let go")
    writer.close()
    (record,) = await site.usage(1)
    assert record.outcome == "cancelled"


async def test_a_request_that_connects_is_let_go(site) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        await site.start(connect_timeout_seconds=60)
        await site.worker(f"http://127.0.0.1:{full.getsockname()[1]}")
        await site.routed(1)
        _, writer = await ask(site)

        async def in_flight() -> float:
            return await site.metric("fleetpulse_proxy_requests_in_flight")

        async def is_let_go() -> bool:
            return await in_flight() == 0

        await site.until(in_flight, "the request under way")
        writer.close()
        await site.until(is_let_go, "the request to be over", seconds=1)
        for filler in fillers:
            filler.close()


async def test_a_request_whose_body_is_still_coming_is_let_go(site) -> None:
    await site.start()
    engine = await site.scripted(before_the_head)
    await site.worker(engine.url)
    await site.routed(1)
    _, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.key}\r\n"
        f"Content-Length: 99\r\n\r\n{{".encode()
    )

    async def in_flight() -> float:
        return await site.metric("fleetpulse_proxy_requests_in_flight")

    async def is_let_go() -> bool:
        return await in_flight() == 0

    await site.until(in_flight, "the request under way")
    writer.close()
    await site.until(is_let_go, "the request to be over", seconds=2)
    assert engine.requests == []


async def test_the_engine_stops_its_work(site) -> None:
    """The mock engine counts aborted requests, as vLLM does."""
    await site.start()
    url = await site.engine(step_seconds=0.05)
    await site.worker(url)
    await site.routed(1)
    reader, writer = await ask(site)
    await reader.readuntil(b"content")
    writer.close()

    async def is_aborted() -> bool:
        async with site.session.get(f"{url}/metrics") as answer:
            text = await answer.text()
        return any(
            line.startswith("vllm:request_success_total")
            and 'finished_reason="abort"' in line
            and line.endswith(" 1.0")
            for line in text.splitlines()
        )

    await site.until(is_aborted, "the engine to abort the request")
