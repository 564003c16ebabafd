"""The head of an engine's answer, read strictly: whatever is not plain HTTP/1.1 is refused, never repaired."""

import re
import string
from typing import Final

import msgspec

HEAD_BYTES: Final = 65_536
HEADERS: Final = 128
# Statuses that say that the engine failed; any other, 501 for what it cannot do among them, is about the request.
FAILURES: Final = frozenset({500, 502, 503, 504})

_STATUS: Final = rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?"
_STATUS_LINE: Final = re.compile(_STATUS)
_HEAD: Final = re.compile(_STATUS + rb"(?:\r\n[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*)*")
_LENGTH: Final = re.compile(rb"[0-9]{1,15}")
_DATE_NAME: Final = b"\r\ndate:"
_DATE_CHARACTERS: Final = string.ascii_letters.encode() + string.digits.encode() + b" ,:"
# Servers in front must neither collect nor keep a stream (nginx does by itself).
_STREAM_HEADERS: Final = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
# What these say decides where the body ends, and whether it can be read.
_ONCE: Final = frozenset({b"content-length", b"transfer-encoding", b"content-encoding"})
# Of one connection only (RFC 9110, 7.6.1), or made anew for the client.
_NOT_FORWARDED: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"server",
        b"date",
        b"set-cookie",
        b"alt-svc",
        b"strict-transport-security",
        b"x-request-id",
        b"x-correlation-id",
        b"retry-after",
    }
)


class MalformedAnswerError(Exception):
    """The engine's answer is not HTTP as it should be."""


class Head(msgspec.Struct):
    """Status and headers. ``length`` None with ``is_chunked`` False is a body that ends with the connection."""

    status: int
    content_type: bytes
    headers: list[tuple[bytes, bytes]]
    """Those for the client."""
    length: int | None
    is_chunked: bool
    keeps_alive: bool
    is_stream: bool
    """Whether the body is server-sent events, and no engine's failure."""


class LastHead(msgspec.Struct, frozen=True):
    """A head, for the next answer on the same connection. ``start`` and ``rest`` are its bytes around the date."""

    head: Head
    size: int
    start: bytes
    rest: bytes


def last_head(data: bytes, head: Head) -> LastHead:
    """What to know of a head and its bytes."""
    start = data.lower().find(_DATE_NAME) + len(_DATE_NAME)
    if start < len(_DATE_NAME):
        return LastHead(head, len(data), data, b"")
    end = data.find(b"\r\n", start)
    return LastHead(head, len(data), data[:start], data[end:] if end >= 0 else b"")


def parse_again(last: LastHead, data: bytes) -> Head | None:
    """The head, if it is the last one but for the date: engines repeat theirs."""
    start, rest = last.start, last.rest
    if len(data) != last.size or not data.startswith(start) or not data.endswith(rest):
        return None
    date = data[len(start) : len(data) - len(rest)]
    return None if date.translate(None, _DATE_CHARACTERS) else last.head


def parse_head(data: bytes) -> Head:
    """Read a head, its last empty line left out. Raises MalformedAnswerError."""
    found = _HEAD.fullmatch(data)
    first, *lines = data.split(b"\r\n")
    if found is None:
        has_status = _STATUS_LINE.fullmatch(first) is not None
        raise MalformedAnswerError("a header is malformed" if has_status else "the status line is not HTTP/1.1")
    if len(lines) > HEADERS:
        raise MalformedAnswerError(f"more than {HEADERS} headers")
    headers: list[tuple[bytes, bytes]] = []
    special: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name not in _NOT_FORWARDED:
            headers.append((name, value))
        elif name in special and name in _ONCE:
            raise MalformedAnswerError(f"{name.decode()} is there twice")
        elif name == b"connection" and name in special:
            special[name] += b"," + value
        else:
            special[name] = value
    return _head(int(found[2]), found[1] == b"1", headers, special)


def _head(status: int, is_http_11: bool, headers: list[tuple[bytes, bytes]], special: dict[bytes, bytes]) -> Head:
    length, coding = special.get(b"content-length"), special.get(b"transfer-encoding")
    if length is not None and coding is not None:
        raise MalformedAnswerError("both content-length and transfer-encoding are there")
    if coding is not None and (coding.lower() != b"chunked" or not is_http_11):
        raise MalformedAnswerError("the transfer-encoding is not chunked")
    if length is not None and not _LENGTH.fullmatch(length):
        raise MalformedAnswerError("content-length is not a number")
    if special.get(b"content-encoding", b"identity").lower() != b"identity":
        raise MalformedAnswerError("the body is compressed, though identity was asked for")
    keeps_alive = is_http_11
    if (connection := special.get(b"connection")) is not None:
        named = {token.strip().lower() for token in connection.split(b",")}
        headers = [(name, value) for name, value in headers if name not in named]
        keeps_alive = b"close" not in named and (is_http_11 or b"keep-alive" in named)
    size = 0 if status in (204, 304) else int(length) if length is not None else None
    content_type = special.get(b"content-type", b"")
    is_stream = status == 200 and content_type.partition(b";")[0].strip().lower() == b"text/event-stream"
    if is_stream:
        there = dict(headers)
        headers = headers + [header for header in _STREAM_HEADERS if header[0] not in there]
    return Head(status, content_type, headers, size, coding is not None and size is None, keeps_alive, is_stream)
