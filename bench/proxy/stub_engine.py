"""An engine that costs as little as possible: python stub_engine.py PORT PORT …, all of them one engine each.

It steps as vLLM does: one event of every running stream, one after the other, then a pause. A request's max_tokens is
the number of events, its seed the milliseconds between two steps. The first event comes at once.
"""

import asyncio
import re
import sys
from collections import defaultdict
from typing import cast

import uvloop

MODEL = "bench/model"
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: *(\d+)")
_TOKENS = re.compile(rb'"max_tokens": ?(\d+)')
_MILLISECONDS = re.compile(rb'"seed": ?(\d+)')
_IS_STREAM = re.compile(rb'"stream": ?true')

_ANSWER = (
    b'{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion","created":1790000000,"model":'
    b'"bench/model","choices":[{"index":0,"message":{"role":"assistant","content":"' + b"word " * 40 + b'"},'
    b'"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":280,"total_tokens":320,"completion_tokens":40}}'
)
_HEALTH = b'{"status":"ok"}'
_MODELS = b'{"object":"list","data":[{"id":"bench/model","object":"model","created":1,"owned_by":"bench"}]}'
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _json(body: bytes) -> bytes:
    head = (
        "HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
        f"content-length: {len(body)}\r\ncontent-type: application/json\r\n\r\n"
    )
    return head.encode() + body


def _event(fields: bytes) -> bytes:
    data = (
        b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk",'
        b'"created":1790000000,"model":"bench/model",' + fields + b"}\n\n"
    )
    return b"%x\r\n%b\r\n" % (len(data), data)


def _delta(delta: bytes, reason: bytes = b"null") -> bytes:
    return _event(
        b'"choices":[{"index":0,"delta":'
        + delta
        + b',"logprobs":null,"finish_reason":'
        + reason
        + b',"token_ids":null}]'
    )


_FIRST = _STREAM_HEAD + _delta(b'{"role":"assistant","content":""}')
_TOKEN = _delta(b'{"content":" word"}')
_LAST = _delta(b'{"content":""}', b'"stop"')
_USAGE = _event(b'"choices":[],"usage":{"prompt_tokens":280,"total_tokens":320,"completion_tokens":40}')
_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_GET = {b"/health": _json(_HEALTH), b"/v1/models": _json(_MODELS)}
_WHOLE = _json(_ANSWER)


class Steps:
    """The streams that are running, by their pause in milliseconds."""

    def __init__(self) -> None:
        self._running: dict[int, dict[Connection, int]] = defaultdict(dict)

    def add(self, connection: "Connection", milliseconds: int, events: int) -> None:
        running = self._running[milliseconds]
        if not running:
            self._arm(milliseconds)
        running[connection] = events

    def drop(self, connection: "Connection") -> None:
        for running in self._running.values():
            running.pop(connection, None)

    def __len__(self) -> int:
        return sum(map(len, self._running.values()))

    def _arm(self, milliseconds: int) -> None:
        asyncio.get_running_loop().call_later(milliseconds / 1000, self._step, milliseconds)

    def _step(self, milliseconds: int) -> None:
        running = self._running[milliseconds]
        ended = []
        for connection, left in running.items():
            if left > 0:
                connection.transport.write(_TOKEN)
                running[connection] = left - 1
            else:
                ended.append(connection)
        for connection in ended:
            del running[connection]
            connection.transport.write(_LAST + (_USAGE if connection.tells_usage else b"") + _END)
        if running:
            self._arm(milliseconds)


class Connection(asyncio.Protocol):
    """One gateway's connection; requests come one after the other."""

    transport: asyncio.Transport

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._received = b""
        self.tells_usage = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self._steps.drop(self)

    def data_received(self, data: bytes) -> None:
        data = self._received + data
        end = data.find(b"\r\n\r\n") + 4
        length = _LENGTH.search(data, 0, end) if end > 3 else None
        if end <= 3 or (length is not None and len(data) < end + int(length[1])):
            self._received = data
            return
        self._received = b""
        self._answer(data, end)

    def _answer(self, data: bytes, end: int) -> None:
        if data.startswith(b"GET"):
            path = data[4 : data.index(b" ", 4)]
            # What a gateway asks besides, and how many streams are running.
            running = _json(b'{"running":%d}' % len(self._steps))
            self.transport.write(_GET.get(path, running))
        elif _IS_STREAM.search(data, end):
            self.tells_usage = b'"include_usage"' in data
            tokens, milliseconds = _TOKENS.search(data, end), _MILLISECONDS.search(data, end)
            self.transport.write(_FIRST)
            self._steps.add(self, int(milliseconds[1]) if milliseconds else 1, int(tokens[1]) if tokens else 1)
        else:
            self.transport.write(_WHOLE)


async def serve(ports: list[int]) -> None:
    steps = Steps()
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(lambda: Connection(steps), "127.0.0.1", port, backlog=2_048)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve([int(port) for port in sys.argv[1:]]))
