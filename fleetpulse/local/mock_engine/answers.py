"""The JSON shapes of vLLM's answers."""

import json
import time
import uuid
from typing import Any, Final

from fleetpulse.local.mock_engine.scheduler import Request

_WORDS: Final = ("the", "fleet", "is", "well", "and", "every", "worker", "answers", "on", "time")


def event(chunk: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def words(first: int, count: int) -> str:
    """The text of ``count`` tokens, from the ``first``th on."""
    return "".join(f"{_WORDS[index % len(_WORDS)]} " for index in range(first, first + count))


class Answer:
    """One answer, in one piece or as the chunks of a stream."""

    def __init__(self, model: str, chat: bool, request: Request) -> None:
        self.chat = chat
        self.request = request
        self._model = model
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def shell(self, streaming: bool) -> dict[str, Any]:
        """What every message of the answer has."""
        kind = "chat.completion" + (".chunk" if streaming else "") if self.chat else "text_completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def usage(self) -> dict[str, int]:
        """Tokens read and made."""
        read, made = self.request.prompt_tokens, self.request.tokens_made
        return {"prompt_tokens": read, "total_tokens": read + made, "completion_tokens": made}

    def chunk(self, text: str, role: str | None = None, finish_reason: str | None = None) -> dict[str, Any]:
        """One event of a stream."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
        if self.chat:
            choice["delta"] = ({"role": role} if role else {}) | {"content": text}
        else:
            choice["text"] = text
        return self.shell(streaming=True) | {"choices": [choice]}

    def whole(self, text: str) -> dict[str, Any]:
        """The answer in one piece."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": self.request.finish_reason}
        choice |= {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return self.shell(streaming=False) | {"choices": [choice], "usage": self.usage()}
