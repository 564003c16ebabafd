"""The JSON shapes of vLLM's answers to chats, completions and embeddings."""

import base64
import hashlib
import json
import struct
import time
import uuid
from collections.abc import Sequence
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
    """One answer, in one piece or as the chunks of a stream. ``requests`` are its choices, ``each`` for each prompt."""

    def __init__(self, model: str, chat: bool, requests: Sequence[Request], each: int) -> None:
        self.chat = chat
        self.requests = requests
        self._each = each
        self._model = model
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def shell(self, streaming: bool) -> dict[str, Any]:
        """What every message of the answer has."""
        kind = "chat.completion" + (".chunk" if streaming else "") if self.chat else "text_completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def usage(self) -> dict[str, int]:
        """Tokens read and made. As vLLM: a prompt with several choices is here once, in the counters with each."""
        read = sum(request.prompt_tokens for request in self.requests[:: self._each])
        made = sum(request.tokens_made for request in self.requests)
        return {"prompt_tokens": read, "total_tokens": read + made, "completion_tokens": made}

    def chunk(self, index: int, text: str, role: str | None = None, finish_reason: str | None = None) -> dict[str, Any]:
        """One event of a stream."""
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": finish_reason}
        if self.chat:
            choice["delta"] = ({"role": role} if role else {}) | {"content": text}
        else:
            choice["text"] = text
        return self.shell(streaming=True) | {"choices": [choice]}

    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        choices = [self._choice(index, request) for index, request in enumerate(self.requests)]
        return self.shell(streaming=False) | {"choices": choices, "usage": self.usage()}

    def _choice(self, index: int, request: Request) -> dict[str, Any]:
        text = words(0, request.tokens_made)
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {"index": index, "logprobs": None, "finish_reason": request.finish_reason} | said


def embeddings(
    model: str, texts: Sequence[str], requests: Sequence[Request], dimensions: int, is_base64: bool
) -> dict[str, Any]:
    """The answer to /v1/embeddings; the same text has the same embedding, of length 1."""
    read = sum(request.prompt_tokens for request in requests)
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(found) if is_base64 else found}
        for index, found in enumerate(_embedding(text, dimensions) for text in texts)
    ]
    usage = {"prompt_tokens": read, "total_tokens": read, "completion_tokens": 0}
    shell = {"id": f"embd-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": model}
    return shell | {"data": data, "usage": usage}


def _embedding(text: str, dimensions: int) -> list[float]:
    digits = hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(dimensions)
    # Halves, so that no embedding is all zeros.
    found = [digit - 127.5 for digit in digits]
    length = sum(value * value for value in found) ** 0.5
    return [value / length for value in found]


def _base64(embedding: Sequence[float]) -> str:
    """Little-endian floats of 32 bits, which OpenAI's SDK asks for by itself."""
    return base64.b64encode(struct.pack(f"<{len(embedding)}f", *embedding)).decode()
