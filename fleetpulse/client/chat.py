"""``fleetpulse chat``: one question to a model, through the proxy; the answer is shown as it comes."""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp

from fleetpulse.client.errors import AskError, silence
from fleetpulse.client.place import Place, proxy_place
from fleetpulse.settings import ChatSettings, LocalSettings, load

# A model may think for long before its first word, but not say nothing between two.
_SILENCE_SECONDS: Final = 300.0
_CONNECT_SECONDS: Final = 10.0
_END: Final = "[DONE]"


class BrokenError(Exception):
    """The answer broke off; what came of it was shown."""


def chat(asked: argparse.Namespace) -> int:
    """Ask, and print the answer. Raises AskError, SettingsError."""
    where = proxy_place(load(ChatSettings, url=asked.url, api_key=asked.key), load(LocalSettings))
    return asyncio.run(_chat(where, asked.text, asked.model))


async def _chat(where: Place, text: str, model: str | None) -> int:
    is_begun = False
    timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS)
    headers = {"Authorization": f"Bearer {where.key}"}
    try:
        async with aiohttp.ClientSession(where.url, headers=headers, timeout=timeout) as session:
            body = {
                "model": model or await _first_model(session),
                "messages": [{"role": "user", "content": text}],
                "stream": True,
            }
            async with session.post("/v1/chat/completions", json=body) as response:
                await _check(response)
                async for word in _words(response):
                    print(word, end="", flush=True)
                    is_begun = True
    except (BrokenError, aiohttp.ClientError, TimeoutError, ValueError) as error:
        if is_begun:
            print(flush=True)
            raise AskError(f"the answer broke off: {error or type(error).__name__}") from error
        if isinstance(error, BrokenError):
            raise AskError(f"the proxy refuses: {error}") from error
        raise silence("the proxy", where.url, "FLEETPULSE_CHAT_URL", error) from error
    print(flush=True)
    return 0


async def _first_model(session: aiohttp.ClientSession) -> str:
    async with session.get("/v1/models") as response:
        await _check(response)
        models = (await response.json())["data"]
    if not models:
        raise BrokenError("this key may use no model")
    return str(models[0]["id"])


async def _check(response: aiohttp.ClientResponse) -> None:
    """Raises BrokenError with the proxy's reason."""
    if response.ok:
        return
    try:
        reason = (await response.json(content_type=None))["error"]["message"]
    except (ValueError, KeyError, TypeError):
        reason = f"{response.status} {response.reason}"
    raise BrokenError(" ".join(str(reason).split()))


async def _words(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """What the events of a stream add to the answer. Raises BrokenError when it does not end as it should."""
    async for line in response.content:
        name, _, value = line.decode().partition(":")
        if name != "data":
            continue
        data = value.strip()
        if data == _END:
            return
        event: dict[str, Any] = json.loads(data)
        if error := event.get("error"):
            raise BrokenError(" ".join(str(error.get("message", error)).split()))
        for choice in event.get("choices", ()):
            if word := (choice.get("delta") or {}).get("content"):
                yield word
    raise BrokenError("it ended before its end")
