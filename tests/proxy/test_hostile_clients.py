"""What a hostile client sends ends in a 4xx or a closed connection, and an engine sees only whole requests of ours."""

import asyncio
import contextlib
import json
import logging
import re

import pytest

from proxy.fleet import parse_address
from proxy.seldom import Seldom

MODEL = "acme/mock-model"
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}).encode()
START = b"POST /v1/chat/completions HTTP/1.1\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


def post(*headers: bytes, body: bytes = BODY, start: bytes = START) -> bytes:
    """A request with a key ({key} is put in) and these headers."""
    lines = b"".join(header + b"\r\n" for header in headers)
    return start + b"Host: x\r\nAuthorization: Bearer {key}\r\n" + lines + b"\r\n" + body


def length(body: bytes = BODY) -> bytes:
    return b"Content-Length: %d" % len(body)


def chunks(body: bytes = BODY) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


INNER = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n"
# Refused, or the connection closed; never an answer of an engine.
REFUSED = {
    "length and coding": post(length(), b"Transfer-Encoding: chunked", body=chunks()),
    "coding and length": post(b"Transfer-Encoding: chunked", length(), body=chunks()),
    "two different lengths": post(length(), b"Content-Length: 5"),
    "two lengths in one": post(b"Content-Length: 5, 5"),
    "a negative length": post(b"Content-Length: -1"),
    "a signed length": post(b"Content-Length: +%d" % len(BODY)),
    "a length in hex": post(b"Content-Length: 0x10"),
    "a length of nothing": post(b"Content-Length:"),
    "an endless length": post(b"Content-Length: " + b"9" * 30),
    "xchunked": post(b"Transfer-Encoding: xchunked", body=chunks()),
    "chunked in quotes": post(b'Transfer-Encoding: "chunked"', body=chunks()),
    "chunked, identity": post(b"Transfer-Encoding: chunked, identity", body=chunks()),
    "chunked twice": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=chunks()),
    "gzip, chunked": post(b"Transfer-Encoding: gzip, chunked", body=chunks()),
    "a tab before chunked's colon": post(b"Transfer-Encoding\t: chunked", body=chunks()),
    "a space before the colon": post(b"Content-Length : 5"),
    "a folded header": post(b"X-A: b\r\n c", length()),
    "a zero in a header": post(b"X-A: b\x00c", length()),
    "a return in a header": post(b"X-A: b\rX-B: c", length()),
    "a header without a name": post(b": x", length()),
    "a chunk in hex with 0x": post(b"Transfer-Encoding: chunked", body=b"0x1\r\na\r\n0\r\n\r\n"),
    "a chunk with a sign": post(b"Transfer-Encoding: chunked", body=b"-1\r\na\r\n0\r\n\r\n"),
    "a chunk longer than it says": post(b"Transfer-Encoding: chunked", body=b"1\r\naaa\r\n0\r\n\r\n"),
    "a chunk of more than can be": post(b"Transfer-Encoding: chunked", body=b"f" * 20 + b"\r\n"),
    "an endless extension": post(b"Transfer-Encoding: chunked", body=b"1;" + b"x" * 100_000 + b"\r\na\r\n0\r\n\r\n"),
    "two hosts": post(b"Host: y", length()),
    "an upgrade to a web socket": post(b"Connection: Upgrade", b"Upgrade: websocket", length()),
    "an upgrade to two things": post(b"Connection: Upgrade", b"Upgrade: h2c, websocket", length()),
    "HTTP/2 itself": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a connection to elsewhere": b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a URL of elsewhere": post(length(), start=b"POST http://169.254.169.254/latest HTTP/1.1\r\n"),
    "our URL in full, of elsewhere": post(
        length(), start=b"POST http://169.254.169.254/v1/chat/completions HTTP/1.1\r\n"
    ),
    "another expectation": post(b"Expect: 200-ok", length()),
    "another version": START.replace(b"1.1", b"9.9") + b"Host: x\r\n\r\n",
    "a method of control characters": b"PO\x01ST / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": bytes.fromhex("16030100a5010000a10303") + b"x" * 100 + b"\r\n\r\n",
    "an endless request line": b"POST /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "an endless header": post(b"X-A: " + b"a" * 100_000, length()),
    "a thousand headers": post(*[b"X-%d: y" % number for number in range(1000)], length()),
    "a body in gzip": post(b"Content-Encoding: gzip", length(b"\x1f\x8b"), body=b"\x1f\x8b"),
    "a body within the length of another request": post(b"Content-Length: 2", body=b"{}" + INNER),
    "line feeds alone": post(length()).replace(b"\r\n", b"\n"),
    "a line feed alone after a header": post(b"X-A: b\nX-B: c", length()),
    "a line feed alone after a chunk's size": post(CHUNKED[:-4], body=chunks().replace(b"\r\n", b"\n", 1)),
    "a line feed alone after a chunk": post(CHUNKED[:-4], body=chunks().replace(b"\r\n0", b"\n0")),
    "a line feed alone after the last chunk": post(CHUNKED[:-4], body=chunks().replace(b"0\r\n\r\n", b"0\n\n")),
    "a line feed within an extension": post(CHUNKED[:-4], body=chunks().replace(b"\r\n", b";a\n1\r\n", 1)),
    "a return within an extension": post(CHUNKED[:-4], body=chunks().replace(b"\r\n", b";a\rb\r\n", 1)),
    "nothing after a chunk": post(CHUNKED[:-4], body=chunks().replace(b"\r\n0", b"0")),
    "a chunk's size of nothing": post(CHUNKED[:-4], body=b"\r\n" + chunks()),
    "a space before a chunk's size": post(CHUNKED[:-4], body=b" " + chunks()),
    "chunks in HTTP/1.0": post(CHUNKED[:-4], body=chunks(), start=START.replace(b"1.1", b"1.0")),
    "chunked on a line of its own": post(b"Transfer-Encoding:\r\n chunked", body=chunks()),
    "chunked after a vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=chunks()),
    "chunked with an underscore": post(b"Transfer_Encoding: chunked", b"Content-Length: 3", body=b"{} " + INNER),
    "a length in digits of another script": post("Content-Length: \u0661\u0662".encode()),
    "a chunk's size in digits of another script": post(CHUNKED[:-4], body="\u0661\r\na\r\n0\r\n\r\n".encode()),
    "endless trailers": post(CHUNKED[:-4], body=chunks()[:-2] + b"X: y\r\n" * 50_000 + b"\r\n"),
    "an endless trailer": post(CHUNKED[:-4], body=chunks()[:-2] + b"X: " + b"y" * 200_000 + b"\r\n\r\n"),
    "a trailer that is none": post(CHUNKED[:-4], body=chunks()[:-2] + b"no colon\r\n\r\n"),
    "two equal lengths": post(length(), length()),
    "a URL in letters of another script": post(length(), start="POST /v1/ch\u0430t/completions HTTP/1.1\r\n".encode()),
    "a URL with a zero": post(length(), start=b"POST /v1/chat/completions\x00 HTTP/1.1\r\n"),
    "a fragment of a URL": post(length(), start=b"POST /v1/embed#/../chat/completions HTTP/1.1\r\n"),
    "a URL of a host alone": post(length(), start=b"POST //169.254.169.254/v1/chat/completions HTTP/1.1\r\n"),
    "no version": b"POST /v1/chat/completions\r\n\r\n",
}
# Bodies of requests that are refused, or have no use for one: never requests of their own.
UNREAD = {
    "without a key": (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n", 401),
    "with a wrong key": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong\r\n", 401),
    "to nowhere": (b"POST /v1/nothing HTTP/1.1\r\nHost: x\r\n", 404),
    "by another method": (b"PUT /v1/chat/completions HTTP/1.1\r\nHost: x\r\n", 405),
    "of a GET": (b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n", 200),
    "of a look at the health": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", 200),
}


async def talk(site, sent: bytes, pieces: int = 1, pause: float = 0.0) -> bytes:
    """Everything that comes back until the connection is closed or silent for a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    sent = sent.replace(b"{key}", site.key.encode())
    size = -(-len(sent) // pieces)
    received = b""
    try:
        for start in range(0, len(sent), size):
            writer.write(sent[start : start + size])
            await writer.drain()
            await asyncio.sleep(pause)
        while True:
            async with asyncio.timeout(0.5):
                piece = await reader.read(65536)
            if not piece:
                break
            received += piece
    except (TimeoutError, ConnectionError):
        pass
    writer.close()
    return received


@pytest.fixture
async def watched(site):
    """A proxy and an engine that keeps what it was sent."""

    async def script(_, writer) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n" + b'{"choices":0}'
        )

    await site.start(header_bytes=8190, idle_timeout_seconds=1.0, body_timeout_seconds=1.0)
    site.watched = await site.scripted(script)
    await site.worker(site.watched.url)
    await site.routed(1)
    return site


def statuses(received: bytes) -> list[int]:
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize("pieces", [1, 60])
async def test_it_is_refused_or_the_connection_closed(watched, pieces) -> None:
    received = await asyncio.gather(*(talk(watched, sent, pieces) for sent in REFUSED.values()))
    let_through = {
        name: answers
        for name, answers in zip(REFUSED, received, strict=True)
        if b"choices" in answers or not all(400 <= status < 500 for status in statuses(answers))
    }
    assert let_through == {}
    assert watched.watched.requests == []
    # Others are served as before.
    assert (await watched.chat())[0] == 200


@pytest.mark.parametrize("framed", ["by its length", "in chunks"])
async def test_a_body_that_nobody_reads_is_no_request(watched, framed) -> None:
    inner = post(length())
    for name, (head, status) in UNREAD.items():
        sized = length(inner.replace(b"{key}", watched.key.encode())) + b"\r\n\r\n"
        rest = sized + inner if framed == "by its length" else CHUNKED + b"{chunks}"
        sent = (head + rest).replace(b"{key}", watched.key.encode())
        sent = sent.replace(b"{chunks}", chunks(inner.replace(b"{key}", watched.key.encode())))
        assert (name, statuses(await talk(watched, sent))) == (name, [status])
    assert watched.watched.requests == []


@pytest.mark.parametrize("pieces", [1, 7, 100])
async def test_what_is_unusual_but_right_is_served_and_framed_anew(watched, pieces) -> None:
    usual = [
        post(length()),
        post(b"Transfer-Encoding: chunked", body=chunks()),
        post(
            b"transfer-encoding: CHUNKED",
            body=b"1;a=b\r\n{\r\n%x\r\n%b\r\n0\r\nX: y\r\n\r\n" % (len(BODY) - 1, BODY[1:]),
        ),
        post(b"Content-Length: 000%d" % len(BODY)),
        post(b"X-A: \xff\xfe", length()),
        post(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: x", length()),
        post(b"Transfer-Encoding: chunked", body=b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"),
    ]
    for sent in usual:
        received = await talk(watched, sent, pieces)
        assert statuses(received) == [200], received
    for head, body in watched.watched.requests:
        assert not re.search(b"transfer-encoding|upgrade|http2", head.lower())
        assert (body, b"Content-Length: %d\r\n" % len(BODY) in head) == (BODY, True)


async def test_requests_in_one_piece_are_answered_in_order(watched) -> None:
    received = await talk(watched, post(length()) * 20 + post(length(), b"Connection: close"))
    assert statuses(received) == [200] * 21


async def test_ten_thousand_requests_in_one_piece_do_not_fill_the_memory(watched) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", watched.port)
    writer.write(post(length()).replace(b"{key}", b"wrong") * 10_000)
    async with asyncio.timeout(60):
        received = await reader.read(1_000_000)
    assert b" 401 " in received
    writer.transport.abort()
    assert (await watched.chat())[0] == 200


async def test_a_body_is_asked_for_only_where_it_is_welcome(watched) -> None:
    expects = (b"Expect: 100-continue", length())
    received = await talk(watched, post(*expects))
    assert statuses(received) == [100, 200]
    assert statuses(await talk(watched, post(*expects, body=b"").replace(b"{key}", b"wrong"))) == [401]
    assert statuses(await talk(watched, post(expects[0], b"Content-Length: 999999999", body=b""))) == [413]


async def test_slow_headers_and_bodies_are_given_up(watched) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", watched.port)
    started = asyncio.get_running_loop().time()

    async def drip() -> None:
        for byte in START * 100:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    # A byte that comes after the end is answered with a reset, which may be what is read.
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(10):
            assert await reader.read() == b""
    dripping.cancel()
    await asyncio.wait({dripping})
    writer.close()
    assert asyncio.get_running_loop().time() - started < 8
    reader, writer = await asyncio.open_connection("127.0.0.1", watched.port)
    writer.write(post(length(), body=BODY[:5]).replace(b"{key}", watched.key.encode()))
    async with asyncio.timeout(10):
        assert statuses(await reader.read()) == [408]
    writer.close()
    # A kept connection that is not used is closed too.
    reader, writer = await asyncio.open_connection("127.0.0.1", watched.port)
    writer.write(post(length()).replace(b"{key}", watched.key.encode()))
    async with asyncio.timeout(10):
        assert statuses(await reader.read()) == [200]
    writer.close()


async def test_a_refusal_of_garbage_has_openais_shape(watched) -> None:
    received = await talk(watched, REFUSED["length and coding"])
    head, _, body = received.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert (error["code"], error["type"]) == ("malformed_request", "invalid_request_error")
    assert error["correlation_id"].encode() in head


async def test_garbage_is_counted_and_fills_no_log(watched, caplog) -> None:
    for _ in range(20):
        await talk(watched, REFUSED["two lengths in one"])
    assert await watched.metric("fleetpulse_proxy_malformed_requests_total") == 20
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_what_clients_bring_about_is_told_now_and_then_with_a_count(monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr("proxy.seldom.time.monotonic", lambda: now)
    seldom = Seldom()
    told = []
    for number in range(250):
        now = number / 10
        record = logging.makeLogRecord({"msg": "request failed", "levelno": logging.ERROR})
        if seldom.filter(record):
            told.append((number, getattr(record, "left_out", 0)))
    assert told == [(0, 0), (100, 99), (200, 99)]


@pytest.mark.parametrize("field", ["api_base", "base_url", "url", "engine_url", "callback"])
async def test_a_body_cannot_name_where_the_request_goes(watched, field) -> None:
    """Elsewhere a field of the body sent keys to a stranger's server."""
    stranger = await watched.scripted()
    status, _ = await watched.chat(**{field: stranger.url})
    assert (status, stranger.connections) == (200, 0)


ADDRESSES = {
    "http://127.0.0.1:8100": ("127.0.0.1", 8100, ""),
    "http://engine.local:80/base/": ("engine.local", 80, "/base"),
    "https://10.0.0.1": ("10.0.0.1", 443, ""),
    "http://[fd00::1]:8000": ("fd00::1", 8000, ""),
    "http://169.254.169.254": None,
    "http://[fe80::1]": None,
    "http://0.0.0.0:1": None,
    "http://224.0.0.1:1": None,
    "http://user:password@engine": None,
    "http://engine\r\nX: y": None,
    "http://engine/a b": None,
    "http://engine/?x": None,
    "http://engine:99999": None,
    "http://engine:0": None,
    "http://engine_1.local.": ("engine_1.local.", 80, ""),
    "http://a..b": None,
    "http://-a": None,
    "http://" + "a" * 64: None,
    "http://%31": None,
    # Further ways to write 169.254.169.254 and 0.0.0.0 that resolvers understand.
    "http://169.254.169.254.": None,
    "http://[::ffff:169.254.169.254]": None,
    "http://[::ffff:0.0.0.0]": None,
    "http://2852039166": None,
    "http://0xa9.254.43518": None,
    "http://0": None,
    "http://[fd00::1%a b]": None,
    "http://": None,
    "ftp://engine": None,
    "file:///etc/passwd": None,
    "engine:8000": None,
    "": None,
}


@pytest.mark.parametrize("url", ADDRESSES)
def test_an_engines_address_is_a_plain_one(url) -> None:
    address = parse_address(url)
    assert (address and (address.host, address.port, address.base_path)) == ADDRESSES[url]
