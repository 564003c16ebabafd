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
    def is_told(self) -> bool:
        """Whether there is any number."""
        numbers = (self.prompt_tokens, self.completion_tokens, self.input_tokens, self.output_tokens)
        return any(number is not None for number in numbers)

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


class FailedUsage(Usage, frozen=True):
    """That of an answer which says of itself that it failed, as those of /v1/responses do, with status 200."""


_NOTHING: Final = FailedUsage()


class Answer(msgspec.Struct):
    """What the proxy reads of an answer that is JSON, or of what an event of /v1/responses holds."""

    usage: Usage | None = None
    status: Any = None

    def told(self) -> Usage | None:
        """Its usage. A failed answer has one in any case, maybe without a number."""
        if self.status != "failed":
            return self.usage
        return FailedUsage(**msgspec.structs.asdict(self.usage)) if self.usage is not None else _NOTHING


_answer: Final = msgspec.json.Decoder(Answer)


def usage_of_answer(tail: bytes, is_whole: bool) -> Usage | None:
    """The usage in an answer that is JSON, of which ``tail`` is all or only the end. None when it cannot be read.

    Whether the answer failed is told by whole ones alone: those are small.
    """
    try:
        if is_whole:
            return _answer.decode(tail).told()
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
