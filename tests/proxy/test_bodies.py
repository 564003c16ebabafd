"""Bodies of requests: which ones are refused, with what, and which ones reach the engine."""

import io
import json

import pytest

from proxy.body import DEPTH_MOST, PARTS_MOST, BodyLimits, parse
from proxy.errors import ProxyError

MODEL = "acme/mock-model"
LIMITS = BodyLimits(choices=128, output_tokens=100_000, messages=10_000)


@pytest.fixture
async def ready(site):
    """A proxy with narrow limits and one worker."""
    await site.start(choices=4, output_tokens=100, messages=3, body_bytes=4096)
    await site.worker(await site.engine())
    await site.routed(1)
    return site


WRONG_BODIES = {
    "no model": ({"messages": []}, "model"),
    "a model that is no text": ({"model": 5}, "model"),
    "too many choices": ({"model": MODEL, "n": 5}, "n"),
    "no choices": ({"model": MODEL, "n": 0}, "n"),
    "too many choices to choose from": ({"model": MODEL, "best_of": 5}, "best_of"),
    "too many tokens": ({"model": MODEL, "max_tokens": 101}, "max_tokens"),
    "too many tokens by the new name": ({"model": MODEL, "max_completion_tokens": 10**30}, "max_completion_tokens"),
    "half a token": ({"model": MODEL, "max_tokens": 0.5}, "max_tokens"),
    "a number as text": ({"model": MODEL, "n": "3"}, "n"),
    "a truth as number": ({"model": MODEL, "n": True}, "n"),
    "too many messages": ({"model": MODEL, "messages": [{}] * 4}, "messages"),
    "too many logprobs": ({"model": MODEL, "logprobs": 1000}, "logprobs"),
    "too many logprobs of each token": ({"model": MODEL, "logprobs": True, "top_logprobs": 101}, "top_logprobs"),
    "logprobs of all there are": ({"model": MODEL, "prompt_logprobs": -1}, "prompt_logprobs"),
    "too many prompts": ({"model": MODEL, "prompt": ["x"] * 4}, "prompt"),
    "too many inputs": ({"model": MODEL, "input": ["x"] * 4}, "input"),
    "too many tokens of a response": ({"model": MODEL, "max_output_tokens": 101}, "max_output_tokens"),
    "stream that is neither": ({"model": MODEL, "stream": "yes"}, "stream"),
    "stream options that are none": ({"model": MODEL, "stream_options": 3}, "stream_options"),
    "usage that is neither": ({"model": MODEL, "stream_options": {"include_usage": 3}}, "stream_options"),
}


async def test_a_wrong_body_is_refused_with_its_field(ready) -> None:
    for name, (body, field) in WRONG_BODIES.items():
        async with ready.session.post(f"{ready.url}/v1/chat/completions", json=body, headers=ready.headers) as answer:
            ready.refused((answer.status, told := await answer.json()), 400, "invalid_value")
            assert (name, told["error"]["param"]) == (name, field)


NOT_JSON = [
    *(b"", b"{", b"[]", b"null", b'"text"', b'{"model":"a"}x', b"[" * 3000, b'{"a":' * 600, b"\xff\xfe{}"),
    b'{"model": NaN}',
    b"\xef\xbb\xbf{}",
    "{}".encode("utf-16"),
    b'{"model": "a", "messages": ' + b"[" * 1_500 + b"]" * 1_500 + b"}",
]


async def test_a_body_that_is_no_json_object_is_refused(ready) -> None:
    for body in NOT_JSON:
        async with ready.session.post(f"{ready.url}/v1/chat/completions", data=body, headers=ready.headers) as answer:
            ready.refused((answer.status, await answer.json()), 400, "invalid_json")


def test_a_body_may_be_nested_so_deep_and_no_deeper() -> None:
    """An engine that fails on a deep one would count as failing."""

    def nested(depth: int) -> bytes:
        return b'{"model": "a", "tools": ' + b'[{"x":' * depth + b'"}]\\""' + b"}]" * depth + b"}"

    assert parse(nested(DEPTH_MOST // 2 - 1), LIMITS).model == "a"
    for depth in (DEPTH_MOST // 2, DEPTH_MOST, 2 * DEPTH_MOST - 60):
        with pytest.raises(ProxyError, match="nested"):
            parse(nested(depth), LIMITS)
    # Many values beside each other are not deep, nor is a text about brackets.
    flat = b'{"model": "a", "messages": [' + b'{"x": []},' * 4_000 + b'"' + b"[" * 4_000 + b'"]}'
    assert parse(flat, LIMITS).model == "a"


SAID_TWICE = {
    b'{"model": "acme/mock-model", "model": "acme/hidden"}': 404,
    b'{"model": "acme/mock-model", "mod\\u0065l": "acme/hidden"}': 404,
    b'{"model": "acme/mock-model", "n": 1, "\\u006e": 1000}': 400,
    b'{"model": "acme/mock-model", "n": 1000, "n": 1, "messages": []}': 200,
}


async def test_of_what_is_said_twice_the_last_holds_as_it_does_for_engines(ready) -> None:
    for body, status in SAID_TWICE.items():
        async with ready.session.post(f"{ready.url}/v1/chat/completions", data=body, headers=ready.headers) as answer:
            assert (body, answer.status) == (body, status)


CHAT = "/v1/chat/completions"
ASKED = b'"stream_options":{"include_usage":true}'
FOR_ENGINE = {
    "nothing to change": (b' {"model":"a", "x": 1e2}', "a", b' {"model":"a", "x": 1e2}'),
    "usage to ask for": (
        b' { "x":{"stream_options":1}, "model":"a","stream":true} ',
        "a",
        b" {" + ASKED + b', "x":{"stream_options":1}, "model":"a","stream":true} ',
    ),
    "options without it": (
        b'{"model":"a","stream":true,"stream_options":{"y":[1]}}',
        "a",
        b'{"model":"a","stream":true,"stream_options":{"y":[1],"include_usage":true}}',
    ),
    "options that are null": (
        b'{"stream_options":null,"model":"a","stream":true}',
        "a",
        b"{" + ASKED + b',"model":"a","stream":true}',
    ),
    "options under a name in other letters": (
        rb'{"model":"a","stream":true,"stream\u005foptions":{"include_usage":false}}',
        "a",
        b'{"model":"a","stream":true,' + ASKED + b"}",
    ),
    "usage that the client asks for": (
        b'{"model":"a","stream":true,' + ASKED + b"}",
        "a",
        b'{"model":"a","stream":true,' + ASKED + b"}",
    ),
    "another name": (b'{"model":"a", "x": 1e2}', "b", b'{"model":"b","x":1e2}'),
    "another name, and usage to ask for": (
        b'{"model":"a","stream":true}',
        "b",
        b'{"model":"b","stream":true,' + ASKED + b"}",
    ),
}


@pytest.mark.parametrize("what", FOR_ENGINE)
def test_an_engine_gets_the_client_s_bytes_unless_something_must_change(what: str) -> None:
    given, model, expected = FOR_ENGINE[what]
    assert parse(given, LIMITS).for_engine(model, CHAT) == expected


DEEP = b"[" * 100 + b"]" * 100 + b","


@pytest.mark.parametrize("part", [b"[],", DEEP, b'"[",'])
def test_a_body_of_endless_parts_is_refused_before_its_levels_are_counted(part: bytes) -> None:
    """32 MB of brackets in brackets would hold up everybody for ten seconds."""
    body = b'{"model":"a","x":[' + DEEP * 2 + part * 2 * PARTS_MOST + b"1]}"
    with pytest.raises(ProxyError, match="parts"):
        parse(body, LIMITS)


@pytest.mark.parametrize("text", [rb"\"[", rb"[\\\"[", rb"\\\\"])
def test_brackets_in_texts_are_no_levels(text: bytes) -> None:
    body = b'{"model":"a","x":[' + DEEP * 2 + b'"' + text * 300 + b'"]}'
    assert parse(body, LIMITS).model == "a"


async def test_a_body_that_is_too_large_is_refused(ready) -> None:
    ready.refused(await ready.chat(messages=[{"role": "user", "content": "x" * 5000}]), 413, "body_too_large")

    async def pieces():
        for _ in range(100):
            yield b" " * 100

    async with ready.session.post(f"{ready.url}/v1/chat/completions", data=pieces(), headers=ready.headers) as answer:
        ready.refused((answer.status, await answer.json()), 413, "body_too_large")
    assert (await ready.chat())[0] == 200


async def test_a_long_prompt_is_served(site) -> None:
    """aiohttp's own limit is a megabyte."""

    await site.start()
    engine = await site.scripted()
    await site.worker(engine.url)
    await site.routed(1)
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x" * 3_000_000}]}).encode()
    url = f"{site.url}/v1/chat/completions"
    async with site.session.post(url, data=io.BytesIO(body), headers=site.headers) as answer:
        assert answer.status == 200
    assert engine.requests[0][1] == body


async def test_a_compressed_body_is_refused_and_not_inflated(ready) -> None:
    headers = ready.headers | {"Content-Encoding": "gzip"}
    async with ready.session.post(f"{ready.url}/v1/completions", data=b"\x1f\x8b", headers=headers) as answer:
        ready.refused((answer.status, await answer.json()), 400, "unsupported_encoding")
