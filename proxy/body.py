"""The body of a request: read once and shallowly, checked against the limits, forwarded as it came if it can be."""

import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from proxy.errors import ProxyError

# Paths whose streams end with the event [DONE] and take stream_options.
COMPLETIONS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
# ... and the one whose streams end with an event that says so.
RESPONSES: Final = "/v1/responses"

_ASKS: Final = b'"stream_options":{"include_usage":true},'
_COUNTS: Final = ("n", "best_of")
_TOKENS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_LISTS: Final = ("messages", "prompt", "input")
# What the engine returns in plenty for each token.
_LOGPROBS: Final = ("logprobs", "top_logprobs", "prompt_logprobs")
_LOGPROBS_MOST: Final = 100
# Python's own limit, at which an engine fails instead of refusing, is a thousand calls.
DEPTH_MOST: Final = 128
# More strings, or brackets outside of them, no API has a use for; counting their levels would hold up everybody else.
PARTS_MOST: Final = 200_000
_STRING: Final = re.compile(rb'"[^"]*"')
_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(sorted(set(range(256)) - set(b"[]{}")))


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """As in the settings."""

    choices: int
    output_tokens: int
    messages: int


class Known(msgspec.Struct):
    """The fields that the proxy looks at; prompts stay as their bytes. Of a field that is there twice the last holds,
    as it does for engines."""

    model: Any = None
    stream: Any = None
    stream_options: Any = msgspec.UNSET
    n: Any = None
    best_of: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    prompt_logprobs: Any = None
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


_known: Final = msgspec.json.Decoder(Known)
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items: Final = msgspec.json.Decoder(list[msgspec.Raw])
_encode: Final = msgspec.json.Encoder().encode


class Body(msgspec.Struct):
    """A request's body, and what it says."""

    original: bytes
    known: Known
    model: str
    is_stream: bool
    wants_usage: bool
    """Whether the client asked for the usage of a stream."""

    def for_engine(self, model: str, path: str) -> bytes:
        """The bytes for an engine that calls the model so. The original ones, unless something must change."""
        original, options = self.original, self.known.stream_options
        asks = self.is_stream and not self.wants_usage and path in COMPLETIONS
        if model == self.model and not asks:
            return original
        if model == self.model and options is msgspec.UNSET:
            # The first brace is the object's own, which is not empty: it has a model.
            start = original.index(b"{") + 1
            return b"".join((original[:start], _ASKS, memoryview(original)[start:]))
        changed = _fields.decode(original)
        changed["model"] = msgspec.Raw(_encode(model))
        if asks:
            given = options if isinstance(options, dict) else {}
            changed["stream_options"] = msgspec.Raw(_encode(given | {"include_usage": True}))
        return _encode(changed)

    def beginning(self, most: int) -> bytes | None:
        """The first bytes of the prompt, when it has so many."""
        known = self.known
        raw = known.messages or known.prompt or known.input
        start = bytes(memoryview(raw)[:most])
        return start if len(start) == most else None


def parse(data: bytes, limits: BodyLimits) -> Body:
    """Read a body. Raises ProxyError with status 400, naming the field."""
    try:
        known = _known.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProxyError(400, "invalid_json", f"the body must be a JSON object: {error}") from None
    if data.count(b"[") + data.count(b"{") > DEPTH_MOST and not _is_shallow(data):
        raise ProxyError(
            400, "invalid_json", f"the body is nested deeper than {DEPTH_MOST} levels, or has over {PARTS_MOST} parts"
        )
    model, is_stream, options = known.model, known.stream, known.stream_options
    if not isinstance(model, str) or not model:
        raise _wrong("model", "model must be the name of a model")
    if is_stream is not None and not isinstance(is_stream, bool):
        raise _wrong("stream", "stream must be true or false")
    wants_usage = options is not msgspec.UNSET and _wants_usage(options)
    _check_numbers(known, limits)
    # So many elements have that many commas between them.
    if data.count(b",") >= limits.messages:
        _check_lists(known, limits.messages)
    return Body(data, known, model, bool(is_stream), wants_usage)


def _is_shallow(data: bytes) -> bool:
    """Whether JSON, which this must be, is nested no deeper than it may be: the innermost pairs of brackets go away,
    level after level. False as well for one of too many parts."""
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 2 * PARTS_MOST:
        return False
    left = _STRING.sub(b"", plain).translate(_BRACKETS, _NO_BRACKETS)
    if len(left) > 2 * PARTS_MOST:
        return False
    for _ in range(DEPTH_MOST):
        if not left:
            break
        left = left.replace(b"[]", b"")
    return not left


def _wants_usage(options: Any) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict) or not isinstance(options.get("include_usage", False), bool | None):
        raise _wrong("stream_options", "stream_options must be an object, its include_usage true or false")
    return bool(options.get("include_usage"))


def _check_numbers(known: Known, limits: BodyLimits) -> None:
    """What a client may make an engine do; null is the engine's default."""
    for name in _COUNTS:
        if (value := getattr(known, name)) is not None:
            _check_number(name, value, 1, limits.choices)
    for name in _TOKENS:
        if (value := getattr(known, name)) is not None:
            _check_number(name, value, 0, limits.output_tokens)
    for name in _LOGPROBS:
        if (value := getattr(known, name)) is not None and not isinstance(value, bool):
            _check_number(name, value, 0, _LOGPROBS_MOST)


def _check_number(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, f"{name} must be a whole number")
    if not least <= value <= most:
        raise _wrong(name, f"{name} must be between {least} and {most}")


def _check_lists(known: Known, most: int) -> None:
    for name in _LISTS:
        raw = getattr(known, name)
        if bytes(memoryview(raw)[:1]) == b"[" and (count := len(_items.decode(raw))) > most:
            raise _wrong(name, f"{name} has {count} elements, at most {most} are allowed")


def _wrong(name: str, message: str) -> ProxyError:
    return ProxyError(400, "invalid_value", message, name)
