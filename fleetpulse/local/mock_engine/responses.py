"""The JSON shapes of /v1/responses: the answer in one piece, and the events of a stream."""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from fleetpulse.local.mock_engine.answers import words
from fleetpulse.local.mock_engine.scheduler import Request


class ResponseAnswer:
    """One response, of one message of text."""

    def __init__(self, model: str, asked: dict[str, Any], request: Request) -> None:
        self._request = request
        self._id = f"resp_{uuid.uuid4().hex}"
        self._message_id = f"msg_{uuid.uuid4().hex}"
        self._number = 0
        self._shell: dict[str, Any] = {
            "id": self._id,
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "error": None,
            "instructions": asked.get("instructions"),
            "max_output_tokens": asked.get("max_output_tokens"),
            "metadata": asked.get("metadata"),
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
        }

    def whole(self) -> dict[str, Any]:
        """The response when it is over. One that was cut off is incomplete."""
        made, read = self._request.tokens_made, self._request.prompt_tokens
        is_cut = self._request.finish_reason == "length"
        return self._shell | {
            "status": "incomplete" if is_cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": [self._message(words(0, made), "incomplete" if is_cut else "completed")],
            "usage": {
                "input_tokens": read,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": made,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": read + made,
            },
        }

    def begin(self) -> Iterator[bytes]:
        """The events before the first text."""
        begun = self._shell | {"status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        item = self._message(None, "in_progress")
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._place(), part=_text(""))

    def delta(self, text: str) -> bytes:
        """The event of some text."""
        return self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[])

    def end(self) -> Iterator[bytes]:
        """The events after the last text."""
        whole = self.whole()
        text = words(0, self._request.tokens_made)
        yield self._event("response.output_text.done", **self._place(), text=text, logprobs=[])
        yield self._event("response.content_part.done", **self._place(), part=_text(text))
        yield self._event("response.output_item.done", output_index=0, item=whole["output"][0])
        yield self._event(f"response.{whole['status']}", response=whole)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._message_id, "output_index": 0, "content_index": 0}

    def _message(self, text: str | None, status: str) -> dict[str, Any]:
        content = [] if text is None else [_text(text)]
        return {"id": self._message_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _event(self, kind: str, **fields: Any) -> bytes:
        told = json.dumps({"type": kind, "sequence_number": self._number} | fields)
        self._number += 1
        return f"event: {kind}\ndata: {told}\n\n".encode()


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
