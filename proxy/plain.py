"""Reading a plain request: a POST to an engine's path in HTTP/1.1, of known length, without anything peculiar.

Nearly all are. Whatever is not, in the least, is none of this reader's business: aiohttp judges it.
"""

import re
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

# One pass says that every byte of a head is as it should be: no folded lines, no bare line ends, no control characters.
_HEAD: Final = re.compile(
    rb"POST (/[!-~]*) HTTP/1\.1\r\n(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e]*\r\n)+\r\n", re.ASCII
)
_LINE: Final = re.compile(r"([^:\r\n]+):[ \t]*([^\r\n]*)\r\n")
_DIGITS_MOST: Final = 9
_LENGTH: Final = re.compile(rf"[0-9]{{1,{_DIGITS_MOST}}}")
_LENGTH_NAME: Final = b"\r\ncontent-length:"
# With these a body is something else than so many bytes, or an answer is wanted before it.
_PECULIAR: Final = frozenset({"transfer-encoding", "content-encoding", "expect", "upgrade", "trailer"})


class Head(msgspec.Struct):
    """What the requests of one client have in common. ``headers`` have names in lower case, and no Content-Length;
    ``start`` and ``rest`` are the bytes before and after its digits."""

    path: str
    headers: Mapping[str, str]
    start: bytes
    rest: bytes
    key_digest: bytes | None = None
    """Of its API key, once it was looked for."""


class Plain(msgspec.Struct):
    """A plain request of which the head is there. ``size`` is that of head and body."""

    head: Head
    head_size: int
    size: int


def read_plain(data: bytes, paths: Collection[str], headers_most: int, head_most: int, body_most: int) -> Plain | None:
    """The request that the data begin with, of so many headers, bytes, and bytes of body at most; None when its head is
    not all there, or it is not plain."""
    found = _HEAD.match(data, 0, head_most)
    if found is None or (path := found[1].decode("ascii")) not in paths:
        return None
    end = found.end()
    lines = _LINE.findall(data[found.end(1) + 11 : end - 2].decode("ascii"))
    headers = {name.lower(): value.rstrip(" \t") for name, value in lines}
    # A header that is there twice may be one that matters.
    if len(headers) != len(lines) or len(lines) > headers_most or not _PECULIAR.isdisjoint(headers):
        return None
    length = headers.pop("content-length", None)
    if length is None or not _LENGTH.fullmatch(length) or int(length) > body_most or not headers.get("host"):
        return None
    if headers.get("connection", "keep-alive").lower() != "keep-alive":
        return None
    digits = data.index(length.encode(), data[:end].lower().index(_LENGTH_NAME) + len(_LENGTH_NAME))
    head = Head(path, headers, data[:digits], data[digits + len(length) : end])
    return Plain(head, end, end + int(length))


def read_again(head: Head, data: bytes, body_most: int) -> Plain | None:
    """The request that the data begin with, if its head is this one but for the length of the body: clients repeat
    theirs."""
    if not data.startswith(head.start):
        return None
    at = len(head.start)
    digits = data[at : data.find(b"\r", at, at + _DIGITS_MOST + 1)]
    end = at + len(digits)
    if not digits.isdigit() or not data.startswith(head.rest, end) or int(digits) > body_most:
        return None
    end += len(head.rest)
    return Plain(head, end, end + int(digits))
