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
_LENGTH: Final = re.compile(r"[0-9]{1,9}")
# With these a body is something else than so many bytes, or an answer is wanted before it.
_PECULIAR: Final = frozenset({"transfer-encoding", "content-encoding", "expect", "upgrade", "trailer"})


class Plain(msgspec.Struct):
    """The head of a plain request. ``headers`` have names in lower case; ``size`` is that of head and body."""

    path: str
    headers: Mapping[str, str]
    head_size: int
    size: int


def read_plain(data: bytes, paths: Collection[str], headers_most: int, head_most: int, body_most: int) -> Plain | None:
    """The head that the data begin with, of so many headers, bytes, and bytes of body at most; None when it is not all
    there, or not plain."""
    head = _HEAD.match(data, 0, head_most)
    if head is None or (path := head[1].decode("ascii")) not in paths:
        return None
    end = head.end()
    lines = _LINE.findall(data[head.end(1) + 11 : end - 2].decode("ascii"))
    headers = {name.lower(): value.rstrip(" \t") for name, value in lines}
    # A header that is there twice may be one that matters.
    if len(headers) != len(lines) or len(lines) > headers_most or not _PECULIAR.isdisjoint(headers):
        return None
    length = headers.get("content-length")
    if length is None or not _LENGTH.fullmatch(length) or int(length) > body_most or not headers.get("host"):
        return None
    if headers.get("connection", "keep-alive").lower() != "keep-alive":
        return None
    return Plain(path, headers, end, end + int(length))
