"""What a request asks the engine for, read from its body."""

import json
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from fleetpulse.local.mock_engine.scheduler import EngineLimits

CHOICES_MOST: Final = 128
DIMENSIONS: Final = 64
_DIMENSIONS_MOST: Final = 4_096
# Where a completion ends when its request does not say, as in OpenAI's API.
_COMPLETION_TOKENS: Final = 16


class RefusedError(Exception):
    """The request is not one that can be answered; the message says why."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Generation:
    """What is to be generated. ``room`` is how many tokens each prompt may get."""

    prompts: list[str]
    room: list[int]
    choices: int
    is_endless: bool
    is_stream: bool
    wants_usage: bool


async def read(http: web.Request, model: str) -> dict[str, Any]:
    """The body. Raises RefusedError."""
    try:
        asked = await http.json()
    except ValueError:
        raise RefusedError("the body is not JSON") from None
    if not isinstance(asked, dict):
        raise RefusedError("the body must be a JSON object")
    if asked.get("model") not in (model, None):
        raise RefusedError(f"The model `{asked['model']}` does not exist.", 404)
    return asked


def chat(asked: dict[str, Any], limits: EngineLimits) -> Generation:
    """Of /v1/chat/completions. Raises RefusedError."""
    return _generation(asked, [_said(asked.get("messages"), "messages")], limits, None)


def completion(asked: dict[str, Any], limits: EngineLimits) -> Generation:
    """Of /v1/completions. Raises RefusedError."""
    return _generation(asked, texts(asked, "prompt"), limits, _COMPLETION_TOKENS)


def response(asked: dict[str, Any], limits: EngineLimits) -> Generation:
    """Of /v1/responses. Raises RefusedError."""
    given = asked.get("input")
    text = given if isinstance(given, str) else _said(given, "input")
    return _generation(asked, [f"{asked.get('instructions') or ''} {text}"], limits, None)


def texts(asked: dict[str, Any], name: str) -> list[str]:
    """One text or a list of them, also as the numbers of their tokens. Raises RefusedError."""
    given = asked.get(name)
    several: list[Any] = given if isinstance(given, list) and not _are_tokens(given) else [given]
    if not several or not all(isinstance(one, str) or _are_tokens(one) for one in several):
        raise RefusedError(f"{name} must be a text, token numbers, or a list of these")
    return [one if isinstance(one, str) else " ".join(map(str, one)) for one in several]


def embedding(asked: dict[str, Any]) -> tuple[int, bool]:
    """How many dimensions embeddings are to have, and whether they are wanted in base64. Raises RefusedError."""
    dimensions = asked.get("dimensions") or DIMENSIONS
    if not isinstance(dimensions, int) or not 1 <= dimensions <= _DIMENSIONS_MOST:
        raise RefusedError(f"dimensions must be between 1 and {_DIMENSIONS_MOST}")
    coding = asked.get("encoding_format") or "float"
    if coding not in ("float", "base64"):
        raise RefusedError("encoding_format must be float or base64")
    return dimensions, coding == "base64"


def prompt_tokens(text: str, limits: EngineLimits) -> int:
    """A text's tokens, which are its words. Raises RefusedError when there is no room for one more."""
    count = max(1, len(text.split()))
    if count >= limits.model_tokens:
        raise RefusedError(f"the model's context holds {limits.model_tokens} tokens, the prompt {count}")
    return count


def _generation(asked: dict[str, Any], prompts: list[str], limits: EngineLimits, default: int | None) -> Generation:
    allowed = default
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        allowed = asked.get(name) or allowed
        if allowed is not None and (not isinstance(allowed, int) or allowed < 1):
            raise RefusedError(f"{name} must be at least 1")
    choices = 1 if asked.get("n") is None else asked["n"]
    if not isinstance(choices, int) or not 1 <= choices <= CHOICES_MOST:
        raise RefusedError(f"n must be between 1 and {CHOICES_MOST}")
    room = [limits.model_tokens - prompt_tokens(prompt, limits) for prompt in prompts]
    return Generation(
        prompts,
        [min(one, allowed or one) for one in room],
        choices,
        bool(asked.get("ignore_eos")),
        bool(asked.get("stream")),
        bool((asked.get("stream_options") or {}).get("include_usage")),
    )


def _said(given: Any, name: str) -> str:
    """All that the messages say, as one text; parts that are no text are words of their JSON."""
    if not isinstance(given, list) or not all(isinstance(message, dict) for message in given):
        raise RefusedError(f"{name} must be a list of objects")
    contents = [message.get("content", "") for message in given]
    return " ".join(content if isinstance(content, str) else json.dumps(content) for content in contents)


def _are_tokens(given: object) -> bool:
    return isinstance(given, list) and bool(given) and all(type(one) is int for one in given)
