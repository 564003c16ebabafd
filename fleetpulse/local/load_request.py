"""One request of a proxy load: a chat completion, streamed or whole, and what became of it."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

_DATA: Final = b"data: "
_DONE: Final = b"data: [DONE]"
# After the first token only events with these are looked into: reading JSON is most of a client's work.
_TOLD_LATE: Final = (b'"usage"', b'"error"')


@dataclass(slots=True)
class Result:
    """``due`` and ``sent`` are seconds from the beginning of the run; the other times are from when the request was
    due, so that one that was sent late for want of room counts its wait.

    ``outcome`` is ``completed``, ``refused`` (4xx), ``limited`` (429), ``failed`` (5xx), ``broken`` (an answer without
    an end, or none of OpenAI's), ``timeout``, ``unreachable``, or ``stopped`` with the run.
    """

    stage: str
    due: float
    sent: float
    is_stream: bool
    status: int = 0
    outcome: str = "stopped"
    first_token_seconds: float | None = None
    duration_seconds: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and what they ask for."""

    url: str
    key: str
    model: str
    prompt_words: int
    most_tokens: int

    def body(self, is_stream: bool) -> bytes:
        """A request's body."""
        words = " ".join(["word"] * self.prompt_words)
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": words}],
            "max_tokens": self.most_tokens,
        }
        if is_stream:
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
        return json.dumps(asked).encode()


async def ask(session: aiohttp.ClientSession, target: Target, body: bytes, result: Result, began: float) -> None:
    """Send a request and fill in what becomes of it. ``began`` is the run's beginning, by the monotonic clock."""
    try:
        headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "application/json"}
        async with session.post(f"{target.url}/v1/chat/completions", data=body, headers=headers) as answer:
            result.status = answer.status
            if answer.status != 200:
                result.outcome, result.detail = _refusal(answer.status), (await answer.text())[:200]
            elif result.is_stream:
                await _stream(answer, result, began)
            else:
                _usage(result, json.loads(await answer.read()))
                result.outcome = "completed"
    except TimeoutError:
        result.outcome = "timeout"
    except aiohttp.ClientConnectorError as error:
        result.outcome, result.detail = "unreachable", str(error)
    except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        result.outcome, result.detail = "broken", repr(error)[:200]
    finally:
        result.duration_seconds = time.monotonic() - began - result.due


def _refusal(status: int) -> str:
    if status == 429:
        return "limited"
    return "refused" if status < 500 else "failed"


async def _stream(answer: aiohttp.ClientResponse, result: Result, began: float) -> None:
    """Read an answer's events."""
    result.outcome = "broken"
    async for line in answer.content:
        if line.startswith(_DONE):
            result.outcome = "completed"
        elif line.startswith(_DATA) and (
            result.first_token_seconds is None or b'"usage"' in line or b'"error"' in line
        ):
            event = json.loads(line[len(_DATA) :])
            if event.get("error"):
                result.detail = str(event["error"])[:200]
                return
            if result.first_token_seconds is None and _has_token(event):
                result.first_token_seconds = time.monotonic() - began - result.due
            _usage(result, event)


def _has_token(event: Mapping[str, Any]) -> bool:
    return any((choice.get("delta") or {}).get("content") for choice in event.get("choices") or ())


def _usage(result: Result, told: Mapping[str, Any]) -> None:
    usage = told.get("usage")
    if usage:
        result.prompt_tokens, result.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
