"""An engine's answer that is not HTTP as it should be is refused, never repaired."""

import asyncio
import contextlib
import gzip
import random

from proxy.relay.answer import Head, MalformedAnswerError, last_head, parse_again, parse_head
from proxy.relay.events import Events
from proxy.relay.framing import framing_of
from proxy.relay.usage import usage_of_answer

MODEL = "acme/mock-model"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PLAIN = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}\n\ndata: [DONE]\n\n'
HOSTILE = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
    "a status of letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "a return within the reason": b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
    "a zero within a value": b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
    "a return within a value": b"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
    "chunks in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a chunk's size with a line feed": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
    "a line feed within a value": b"HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
    "a folded header": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "a space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
    "length and coding": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12",
    "lengths in one header": b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n1",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "a huge length": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "a coding in disguise": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "a compressed body": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 20\r\n\r\n"
    + gzip.compress(b"")[:20],
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n",
    "a switch of protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    "a chunk in disguise": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk with a sign": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n",
    "a chunk of more than can be": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
    "an endless extension": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;" + b"x" * 5000,
    "endless trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 5000,
}


async def test_what_is_not_http_is_not_passed_on(site) -> None:
    def sends(answer: bytes):
        async def script(_, writer) -> None:
            writer.write(answer)
            await asyncio.sleep(3600)

        return script

    await site.start()
    await site.worker((await site.scripted(*map(sends, HOSTILE.values()))).url)
    await site.routed(1)
    for name in HOSTILE:
        async with asyncio.timeout(10):
            status, body = await site.chat()
        assert (name, status, body["error"]["code"]) == (name, 502, "worker_failed")
    assert await site.metric('fleetpulse_proxy_attempts_total{outcome="failed"}') == len(HOSTILE)


async def test_interim_answers_are_skipped(site) -> None:
    async def script(_, writer) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    await site.start()
    await site.worker((await site.scripted(script)).url)
    await site.routed(1)
    async with site.session.post(f"{site.url}/v1/completions", json={"model": MODEL}, headers=site.headers) as answer:
        assert (answer.status, await answer.read()) == (200, b"{}")


DATED = (
    b"HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 12:00:00 GMT\r\nX-A: b\r\n"
    b"content-type: text/event-stream\r\ntransfer-encoding: chunked"
)


def again(data: bytes, after: bytes) -> Head | None:
    """The head as one that follows ``after``."""
    return parse_again(last_head(after, parse_head(after)), data)


def test_a_head_that_differs_in_its_date_alone_is_known_again() -> None:
    undated = DATED.replace(b"date: Sat, 21 Nov 2026 12:00:00 GMT\r\n", b"")
    dated_last = undated + b"\r\nDate: Sat, 21 Nov 2026 12:00:00 GMT"
    for head in (DATED, undated, dated_last):
        later = head.replace(b"Sat, 21 Nov 2026 12:00:00", b"Sun, 22 Nov 2026 01:02:03")
        assert again(later, after=head) == parse_head(later)
    assert again(undated, after=DATED) is None


def test_a_head_is_known_again_only_if_it_would_be_read_so() -> None:
    """Whichever byte is another one, is missing or is there besides."""
    known = 0
    for at in range(len(DATED)):
        for byte in b"09aX:; \t\r\n\x00\xff":
            for end in (at, at + 1):
                changed = DATED[:at] + bytes([byte]) + DATED[end:]
                found = again(changed, after=DATED)
                known += found is not None
                assert found is None or found == parse_head(changed), changed
        assert again(DATED[:at] + DATED[at + 1 :], after=DATED) is None
    assert known > 10


def test_no_bytes_of_an_engine_crash_the_reader() -> None:
    randomness = random.Random(seed := random.randrange(2**32))
    print("seed", seed)
    seeds = [HEAD, *HOSTILE.values(), HEAD + b"5\r\nhello\r\n0\r\n\r\n", HEAD + PLAIN]
    for _ in range(3000):
        sent = bytearray(randomness.choice(seeds)[:2000])
        for _ in range(randomness.randrange(1, 8)):
            sent[randomness.randrange(len(sent))] = randomness.choice(b"\r\n\x00 :;0afx\xff")
        head, _, body = bytes(sent).partition(b"\r\n\r\n")
        with contextlib.suppress(MalformedAnswerError):
            framing = framing_of(parse_head(head))
            Events(strips_usage=True, limit_bytes=1000).feed(framing.feed(body))
        usage_of_answer(bytes(sent), is_whole=False)
