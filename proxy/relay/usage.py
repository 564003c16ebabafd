"""Token counts out of an engine's answer."""

import json
from typing import Annotated, Any, Final

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_USAGE: Final = b'"usage"'


class _Details(msgspec.Struct):
    cached_tokens: Count | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one answer, as the engine says. The second names are those of /v1/responses."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None

    @property
    def read(self) -> int:
        """Tokens of the prompt."""
        return self.prompt_tokens or self.input_tokens or 0

    @property
    def made(self) -> int:
        """Tokens of the answer; none for embeddings."""
        return self.completion_tokens or self.output_tokens or 0

    @property
    def cached(self) -> int | None:
        """Tokens of the prompt that were in the engine's cache."""
        details = self.prompt_tokens_details or self.input_tokens_details
        return details.cached_tokens if details is not None else None


class _Whole(msgspec.Struct):
    usage: Usage | None = None


_whole: Final = msgspec.json.Decoder(_Whole)


def usage_of_answer(tail: bytes, is_whole: bool) -> Usage | None:
    """The usage in an answer that is JSON, of which ``tail`` is all or only the end. None when it cannot be read."""
    try:
        if is_whole:
            return _whole.decode(tail).usage
        return _from_tail(tail)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return None


def _from_tail(tail: bytes) -> Usage | None:
    """The last usage object in the end of a JSON text."""
    at = tail.rfind(_USAGE)
    start = tail.find(b"{", at) if at >= 0 else -1
    if start < 0 or tail[at + len(_USAGE) : start].strip() != b":":
        return None
    found: Any
    found, _ = json.JSONDecoder().raw_decode(tail[start:].decode("utf-8", "replace"))
    return msgspec.convert(found, Usage)
