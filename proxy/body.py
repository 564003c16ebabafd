"""The body of a request: read once and shallowly, checked against the limits, forwarded as it came if it can be."""

import re
from typing import Any, Final

import msgspec

from fleetpulse.settings import ProxySettings
from proxy.errors import ProxyError

# Paths whose streams end with the event [DONE] and take stream_options.
COMPLETIONS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
# ... and the one whose streams end with an event that says so.
RESPONSES: Final = "/v1/responses"

_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_any: Final = msgspec.json.Decoder()
_encode: Final = msgspec.json.Encoder().encode
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


class Body(msgspec.Struct):
    """What the proxy needs to know of a body. ``fields`` are the top level's, as their own bytes."""

    original: bytes
    fields: dict[str, msgspec.Raw]
    model: str
    is_stream: bool
    wants_usage: bool
    """Whether the client asked for the usage of a stream."""

    def for_engine(self, model: str, path: str) -> bytes:
        """The bytes for an engine that calls the model so. The original ones, unless something must change."""
        asks = self.is_stream and not self.wants_usage and path in COMPLETIONS
        if model == self.model and not asks:
            return self.original
        changed = dict(self.fields)
        changed["model"] = msgspec.Raw(_encode(model))
        if asks:
            options = _value(self.fields, "stream_options") or {}
            changed["stream_options"] = msgspec.Raw(_encode(options | {"include_usage": True}))
        return _encode(changed)

    def beginning(self, most: int) -> bytes | None:
        """The first bytes of the prompt, when it has so many."""
        for name in _LISTS:
            raw = self.fields.get(name)
            if raw is not None:
                start = bytes(memoryview(raw)[:most])
                return start if len(start) == most else None
        return None


def parse(data: bytes, settings: ProxySettings) -> Body:
    """Read a body. Raises ProxyError with status 400, naming the field."""
    try:
        fields = _fields.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProxyError(400, "invalid_json", f"the body must be a JSON object: {error}") from None
    if data.count(b"[") + data.count(b"{") > DEPTH_MOST and not _is_shallow(data):
        raise ProxyError(
            400, "invalid_json", f"the body is nested deeper than {DEPTH_MOST} levels, or has over {PARTS_MOST} parts"
        )
    model = _value(fields, "model")
    if not isinstance(model, str) or not model:
        raise _wrong("model", "model must be the name of a model")
    is_stream = _value(fields, "stream") if "stream" in fields else False
    if is_stream is not None and not isinstance(is_stream, bool):
        raise _wrong("stream", "stream must be true or false")
    wants_usage = False
    if "stream_options" in fields:
        wants_usage = _wants_usage(_value(fields, "stream_options"))
    _check_limits(fields, settings)
    return Body(data, fields, model, bool(is_stream), wants_usage)


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


def _check_limits(fields: dict[str, msgspec.Raw], settings: ProxySettings) -> None:
    """What a client may make an engine do; null is the engine's default."""
    for name in _COUNTS:
        if name in fields:
            _check_number(fields, name, 1, settings.choices)
    for name in _TOKENS:
        if name in fields:
            _check_number(fields, name, 0, settings.output_tokens)
    for name in _LOGPROBS:
        raw = fields.get(name)
        if raw is not None and bytes(raw) not in (b"true", b"false"):
            _check_number(fields, name, 0, _LOGPROBS_MOST)
    for name in _LISTS:
        raw = fields.get(name)
        if raw is not None and bytes(memoryview(raw)[:1]) == b"[":
            count = len(_items.decode(raw))
            if count > settings.messages:
                raise _wrong(name, f"{name} has {count} elements, at most {settings.messages} are allowed")


_items: Final = msgspec.json.Decoder(list[msgspec.Raw])


def _check_number(fields: dict[str, msgspec.Raw], name: str, least: int, most: int) -> None:
    value = _value(fields, name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, f"{name} must be a whole number")
    if not least <= value <= most:
        raise _wrong(name, f"{name} must be between {least} and {most}")


def _value(fields: dict[str, msgspec.Raw], name: str) -> Any:
    """A field's value; None when it is absent."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return _any.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _wrong(name, f"{name} cannot be read: {error}") from None


def _wrong(name: str, message: str) -> ProxyError:
    return ProxyError(400, "invalid_value", message, name)
