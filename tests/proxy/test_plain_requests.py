"""Plain requests are read without aiohttp, all others by aiohttp, on whichever connection they come."""

import asyncio
import contextlib
import gc
import json

import pytest

from proxy.call import Call
from proxy.plain import Plain, read_again, read_plain
from proxy.relay.carriage import Carriage
from proxy.relay.exchange import Exchange

MODEL = "acme/mock-model"
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}).encode()
PATHS = frozenset({"/v1/chat/completions"})
START = b"POST /v1/chat/completions HTTP/1.1\r\n"


def post(*headers: bytes, body: bytes = BODY, start: bytes = START) -> bytes:
    lines = (b"Host: x", b"Authorization: Bearer {key}", b"Content-Length: %d" % len(body), *headers)
    return start + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def read(data: bytes):
    return read_plain(data, PATHS, headers_most=100, head_most=8_190, body_most=10_000)


def test_a_plain_request_is_read() -> None:
    plain = read(post(b"X-Session-Id:\t a b \t", b"TraceParent: 00-x", b"Empty:"))
    assert (plain.head.path, plain.size, plain.size - plain.head_size) == (
        "/v1/chat/completions",
        len(post(b"X-Session-Id:\t a b \t", b"TraceParent: 00-x", b"Empty:")),
        len(BODY),
    )
    assert plain.head.headers == {
        "host": "x",
        "authorization": "Bearer {key}",
        "x-session-id": "a b",
        "traceparent": "00-x",
        "empty": "",
    }


def test_the_size_is_known_before_the_body_is_there() -> None:
    whole = post()
    assert {read(whole[:end]).size for end in range(len(whole) - len(BODY), len(whole))} == {len(whole)}
    assert all(read(whole[:end]) is None for end in range(len(whole) - len(BODY)))


NOT_PLAIN = {
    "another method": post(start=START.replace(b"POST", b"PUT")),
    "a method in small letters": post(start=START.replace(b"POST", b"post")),
    "another version": post(start=START.replace(b"1.1", b"1.0")),
    "another path": post(start=START.replace(b"chat", b"talk")),
    "a query": post(start=START.replace(b" HTTP", b"?x=y HTTP")),
    "a URL in full": post(start=START.replace(b"/v1", b"http://x/v1")),
    "a second length": post(b"Content-Length: %d" % len(BODY)),
    "a header twice": post(b"X-A: b", b"x-a: c"),
    "a coding": post(b"Transfer-Encoding: chunked"),
    "a compressed body": post(b"Content-Encoding: gzip"),
    "an expectation": post(b"Expect: 100-continue"),
    "an offer": post(b"Upgrade: h2c"),
    "a trailer": post(b"Trailer: X-A"),
    "the end of the connection": post(b"Connection: close"),
    "more of the connection": post(b"Connection: keep-alive, x"),
    "a folded header": post(b"X-A: b\r\n c"),
    "a control character": post(b"X-A: b\x0bc"),
    "a zero": post(b"X-A: b\x00c"),
    "another script": post(b"X-A: \xc3\xa4"),
    "a return alone": post(b"X-A: b\rX-B: c"),
    "a line feed alone": post(b"X-A: b\nX-B: c"),
    "line feeds alone": post().replace(b"\r\n", b"\n"),
    "a space before a colon": post(b"X-A : b"),
    "a header without a name": post(b": b"),
    "a header without a colon": post(b"X-A"),
    "an empty line before": b"\r\n" + post(),
    "no host": post().replace(b"Host: x\r\n", b""),
    "an empty host": post().replace(b"Host: x", b"Host:"),
    "no length": post().replace(b"Content-Length", b"Content-Size"),
    "a signed length": post().replace(b"Length: ", b"Length: +"),
    "an endless length": post().replace(b"Length: ", b"Length: " + b"1" * 20),
    "a length of nothing": post().replace(b"Content-Length: %d" % len(BODY), b"Content-Length:"),
    "a large body": post(body=b" " * 10_001),
    "a large head": post(b"X-A: " + b"b" * 8_190),
    "many headers": post(*(b"X-%d: y" % number for number in range(100))),
}


@pytest.mark.parametrize("what", NOT_PLAIN)
def test_it_is_not_plain(what) -> None:
    assert read(NOT_PLAIN[what]) is None


def again(data: bytes, after: bytes) -> Plain | None:
    """The request as one that follows ``after``."""
    return read_again(read(after).head, data, body_most=10_000)


@pytest.mark.parametrize("size", [0, 9, 10, 123, 10_000])
def test_a_head_that_differs_in_the_body_s_length_alone_is_known_again(size) -> None:
    data = post(b"X-A: b", body=b" " * size)
    assert again(data, after=post(b"X-A: b")) == Plain(read(data).head, len(data) - size, len(data))
    assert again(data[: len(data) - size], after=post(b"X-A: b")).size == len(data)


@pytest.mark.parametrize("what", NOT_PLAIN)
def test_what_is_not_plain_is_not_known_again(what) -> None:
    assert again(NOT_PLAIN[what], after=post()) is None


def test_a_head_is_known_again_only_if_it_would_be_read_so() -> None:
    """Whichever byte is another one, is missing or is there besides."""
    first = post(b"X-A: b", body=b"")
    read_as, known = read(first), 0
    assert read_as is not None
    for at in range(len(first)):
        for byte in b"09+-aX:; \t\r\n\x00\xff":
            for changed in (
                first[:at] + bytes([byte]) + first[at + (kind != "added") :] for kind in ("other", "added")
            ):
                found = read_again(read_as.head, changed, body_most=10_000)
                whole = read(changed)
                known += found is not None
                assert found is None or (found.size, found.head_size, found.head.headers) == (
                    whole.size,
                    whole.head_size,
                    whole.head.headers,
                ), changed
        assert again(first[:at] + first[at + 1 :], after=first) is None
    assert known > 10


@pytest.fixture
async def plain(site, monkeypatch):
    """A proxy with a worker; ``site.handed_over`` counts the connections that aiohttp took over."""
    from proxy.front import Front

    successor = Front.successor
    site.handed_over = 0

    def counted(front: Front):
        site.handed_over += 1
        return successor(front)

    await site.start(idle_timeout_seconds=1.5, body_timeout_seconds=1.0, body_bytes=1_000_000)
    await site.worker(await site.engine())
    await site.routed(1)
    monkeypatch.setattr(Front, "successor", counted)
    return site


class Talk:
    """A connection to the proxy."""

    def __init__(self, site, reader, writer) -> None:
        self.site, self.reader, self.writer = site, reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data.replace(b"{key}", self.site.key.encode()))

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer that has a length."""
        async with asyncio.timeout(20):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return int(head[9:12]), await self.reader.readexactly(length)


@pytest.fixture
async def talk(plain):
    reader, writer = await asyncio.open_connection("127.0.0.1", plain.port)
    yield Talk(plain, reader, writer)
    writer.close()


async def test_plain_requests_need_no_aiohttp(plain, talk) -> None:
    for _ in range(3):
        talk.send(post(body=BODY))
        assert (await talk.answer())[0] == 200
    talk.send(post(body=b"{not json"))
    assert (await talk.answer())[0] == 400
    talk.send(post(body=BODY.replace(b"mock-model", b"unknown-one")))
    status, body = await talk.answer()
    assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")
    talk.send(post(body=BODY))
    assert ((await talk.answer())[0], plain.handed_over) == (200, 0)


async def test_head_and_body_may_come_apart(plain, talk) -> None:
    """Most clients write them one after the other."""
    whole = post(body=BODY).replace(b"{key}", plain.key.encode())
    for split in (len(whole) - len(BODY), len(whole) - 5):
        talk.send(whole[:split])
        await talk.writer.drain()
        await asyncio.sleep(0.01)
        talk.send(whole[split:])
        assert (await talk.answer())[0] == 200


async def test_any_request_may_follow_a_plain_one(plain, talk) -> None:
    talk.send(post(body=BODY))
    assert (await talk.answer())[0] == 200
    talk.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n")
    status, body = await talk.answer()
    assert (status, json.loads(body)["data"][0]["id"]) == (200, MODEL)
    talk.send(post(body=BODY))
    assert ((await talk.answer())[0], plain.handed_over) == (200, 1)


@pytest.mark.parametrize("count", [2, 30])
async def test_requests_sent_ahead_are_answered_in_order(plain, talk, count) -> None:
    """Those that come while an answer is under way, and those that come with the first."""
    bodies = [json.dumps(json.loads(BODY) | {"max_tokens": number % 5 + 1}).encode() for number in range(count)]
    talk.send(post(body=bodies[0]))
    await talk.writer.drain()
    talk.send(b"".join(post(body=body) for body in bodies[1:]))
    answers = [await talk.answer() for _ in bodies]
    made = [json.loads(body)["usage"]["completion_tokens"] for _, body in answers]
    assert made == [number % 5 + 1 for number in range(count)]


async def test_a_body_that_does_not_come_is_waited_for_no_longer_than_any(plain, talk) -> None:
    talk.send(post(body=BODY)[:-5].replace(b"{key}", plain.key.encode()))
    status, body = await talk.answer()
    assert (status, json.loads(body)["error"]["code"]) == (408, "body_timeout")


async def test_a_large_body_is_read(plain, talk) -> None:
    body = json.dumps(json.loads(BODY) | {"user": "x" * 400_000}).encode()
    talk.send(post(body=body))
    assert (await talk.answer())[0] == 200


async def test_a_body_that_is_too_large_is_refused_however_it_comes(plain, talk) -> None:
    talk.send(post(body=b" " * 1_000_001))
    status, body = await talk.answer()
    assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")


async def test_a_connection_that_is_not_used_is_closed(plain, talk) -> None:
    talk.send(post(body=BODY))
    assert (await talk.answer())[0] == 200
    async with asyncio.timeout(20):
        assert await talk.reader.read() == b""
    assert plain.handed_over == 0


async def test_a_connection_that_was_never_used_is_closed(plain, talk) -> None:
    async with asyncio.timeout(20):
        assert await talk.reader.read() == b""


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/chat/completions?by=aiohttp"])
async def test_a_request_that_is_over_waits_for_no_garbage_collector(plain, url, is_stream) -> None:
    """It would keep prompts in memory for as long as there is little to do."""

    def left() -> list[object]:
        return [each for each in gc.get_objects() if isinstance(each, Call | Carriage | Exchange)]

    body = json.loads(BODY) | {"stream": is_stream}
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            async with plain.session.post(f"{plain.url}{url}", json=body, headers=plain.headers) as answer:
                assert (answer.status, b"usage" in await answer.read()) == (200, not is_stream)
        await plain.until(lambda: not left(), "the end of all that belongs to a request")
    finally:
        gc.enable()


async def test_an_unknown_key_is_refused_in_the_same_words(plain, talk) -> None:
    talk.send(post(body=BODY).replace(b"{key}", b"fp_unknown"))
    status, body = await talk.answer()
    assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")


async def test_a_connection_goes_on_with_the_key_of_each_request(plain, talk) -> None:
    for _ in range(2):
        talk.send(post(body=BODY))
        assert (await talk.answer())[0] == 200
    talk.send(post(body=BODY).replace(b"{key}", b"fp_" + b"u" * (len(plain.key) - 3)))
    assert (await talk.answer())[0] == 401


async def test_a_fault_of_ours_at_a_request_s_end_is_told_and_leaves_no_client_waiting(
    plain, talk, monkeypatch, caplog
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("made up")

    with monkeypatch.context() as patched:
        patched.setattr("proxy.metrics.ProxyMetrics.ended", fails)
        talk.send(post(body=BODY))
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionResetError):
                await talk.reader.read()
    assert "request failed" in caplog.text
    assert (await plain.chat())[0] == 200
