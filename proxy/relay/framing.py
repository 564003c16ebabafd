"""Where the body of an engine's answer ends."""

import re
from typing import Final, Protocol

import msgspec

from proxy.relay.answer import Head, MalformedAnswerError

# A chunk's size is at most eight hex digits: 4 GiB; extensions have no use here.
_CHUNK_LINE: Final = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_WHOLE_CHUNK: Final = re.compile(rb"([0-9a-fA-F]{1,8})\r\n")
_LINE_BYTES: Final = 256
_TRAILER_BYTES: Final = 8_192


class Framing(Protocol):
    """Takes the bytes of a connection and gives those of the body."""

    ended: bool
    surplus: bool
    """More came than the body: the connection is not to be trusted with another request."""

    def feed(self, data: bytes) -> bytes:
        """The part of the body in these bytes. Raises MalformedAnswerError."""

    def end_of_connection(self) -> bool:
        """The connection ends; whether the body is whole."""


class Sized:
    """A body of a known length."""

    __slots__ = ("_left", "ended", "surplus")

    def __init__(self, length: int) -> None:
        self._left = length
        self.ended = length == 0
        self.surplus = False

    def feed(self, data: bytes) -> bytes:
        """The body's bytes."""
        if len(data) > self._left:
            self.surplus = True
            data = data[: self._left]
        self._left -= len(data)
        self.ended = self._left == 0
        return data

    def end_of_connection(self) -> bool:
        """Whole only if all has come."""
        return self.ended


class Unsized:
    """A body that ends with the connection; nobody can say whether it is whole."""

    __slots__ = ("ended", "surplus")

    def __init__(self) -> None:
        self.ended = False
        self.surplus = False

    def feed(self, data: bytes) -> bytes:
        """All of it."""
        return data

    def end_of_connection(self) -> bool:
        """As whole as it will get."""
        self.ended = True
        return True


class Chunked(msgspec.Struct):
    """A body in chunks. Trailers are dropped."""

    ended: bool = False
    surplus: bool = False
    _left: int = 0
    _after_chunk: bool = False
    _in_trailer: bool = False
    _trailer_bytes: int = 0
    _partial: bytes = b""

    def is_whole_chunk(self, data: bytes) -> bool:
        """Whether the bytes are exactly one chunk of a body whose last chunk is complete; then they need no feed()."""
        if self._left or self._partial or self._after_chunk or self._in_trailer or self.ended:
            return False
        line = _WHOLE_CHUNK.match(data)
        return line is not None and line.end() + int(line[1], 16) + 2 == len(data) and data[-2:] == b"\r\n"

    def feed(self, data: bytes) -> bytes:
        """The chunks' content."""
        if self._partial:
            data = self._partial + data
            self._partial = b""
        pieces = []
        at, size = 0, len(data)
        while at < size and not self.ended:
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._after_chunk = not self._left
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                self._keep(data[at:])
                return b"".join(pieces)
            self._line(data[at:end])
            at = end + 2
        self.surplus = at < size
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def end_of_connection(self) -> bool:
        """Whole only if the last chunk has come."""
        return self.ended

    def _keep(self, rest: bytes) -> None:
        """A line whose end has not come yet."""
        if len(rest) > (_TRAILER_BYTES if self._in_trailer else 1 if self._after_chunk else _LINE_BYTES):
            raise MalformedAnswerError("a chunk does not end where it should, or its line is too long")
        self._partial = rest

    def _line(self, line: bytes) -> None:
        if self._after_chunk:
            if line:
                raise MalformedAnswerError("a chunk is longer than it says")
            self._after_chunk = False
        elif self._in_trailer:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > _TRAILER_BYTES:
                raise MalformedAnswerError("too many trailers")
            self.ended = not line
        else:
            found = _CHUNK_LINE.fullmatch(line)
            if found is None or len(line) > _LINE_BYTES:
                raise MalformedAnswerError("a chunk's size is not a number")
            self._left = int(found[1], 16)
            self._in_trailer = not self._left


def framing_of(head: Head) -> Framing:
    """How the body after this head ends."""
    if head.is_chunked:
        return Chunked()
    return Unsized() if head.length is None else Sized(head.length)
