"""Every endpoint that the proxy names, by OpenAI's own SDK, and what records and the engine's counters say of it."""

import json
import math

import openai
import pytest

from agent.engines.page import parse
from agent.engines.vllm import ADAPTER

MODEL = "acme/mock-model"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
TOO_LONG = {"max_tokens": 4, "extra_body": {"ignore_eos": True}}


@pytest.fixture
async def engine(site) -> str:
    await site.start()
    url: str = await site.engine()
    await site.worker(url)
    await site.routed(1)
    return url


@pytest.fixture
async def client(site, engine):
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=site.key, max_retries=0) as client:
        yield client


async def counted(site, engine: str) -> tuple[float, float]:
    """Tokens that the engine counted itself, as the agent reads them."""
    async with site.session.get(f"{engine}/metrics") as answer:
        (reading,) = ADAPTER.read(parse(await answer.text(), ADAPTER.series), [MODEL])
    return reading.values["prompt_tokens_total"], reading.values["generation_tokens_total"]


async def booked(site) -> tuple[int, int]:
    """Tokens of all records."""
    records = await site.all_usage()
    assert {(record.outcome, record.token_source) for record in records} == {("completed", "engine")}
    return sum(record.prompt_tokens for record in records), sum(record.completion_tokens for record in records)


async def test_embeddings_are_of_length_1_and_the_same_for_the_same_text(client, site, engine) -> None:
    answer = await client.embeddings.create(model=MODEL, input=["the fleet", "is well and on time", "the fleet"])
    first, second, third = (item.embedding for item in answer.data)
    assert (first, [item.index for item in answer.data]) == (third, [0, 1, 2])
    assert first != second
    assert math.sqrt(sum(value * value for value in second)) == pytest.approx(1, abs=1e-5)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (9, 9)
    # The SDK asked for base64 by itself; numbers are the same.
    plain = await client.embeddings.create(model=MODEL, input="the fleet", encoding_format="float", dimensions=64)
    assert plain.data[0].embedding == pytest.approx(first)
    numbers = await client.embeddings.create(model=MODEL, input=[[1, 2, 3], [4]], dimensions=8)
    assert [len(item.embedding) for item in numbers.data] == [8, 8]
    assert await booked(site) == await counted(site, engine) == (9 + 2 + 4, 0)


async def test_a_list_of_prompts_has_its_choices_in_order(client, site, engine) -> None:
    prompts = ["once upon a time", "there"]
    whole = await client.completions.create(model=MODEL, prompt=prompts, **TOO_LONG)
    assert [(choice.index, len(choice.text.split()), choice.finish_reason) for choice in whole.choices] == [
        (0, 4, "length"),
        (1, 4, "length"),
    ]
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (5, 8)
    stream = await client.completions.create(model=MODEL, prompt=prompts, stream=True, **TOO_LONG)
    texts = {0: "", 1: ""}
    ends = []
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends += [choice.finish_reason] if choice.finish_reason else []
    assert texts == {index: choice.text for index, choice in enumerate(whole.choices)}
    assert ends == ["length", "length"]
    await client.completions.create(model=MODEL, prompt=[1, 2, 3], **TOO_LONG)
    assert await booked(site) == await counted(site, engine) == (5 + 5 + 3, 8 + 8 + 4)


async def test_several_choices_of_a_chat_are_told_apart(client, site, engine) -> None:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "how is the fleet"}], **TOO_LONG}
    whole = await client.chat.completions.create(**asked, n=3)
    assert [len(choice.message.content.split()) for choice in whole.choices] == [4, 4, 4]
    roles = []
    async for chunk in await client.chat.completions.create(**asked, n=2, stream=True):
        roles += [choice.index for choice in chunk.choices if choice.delta.role]
    assert sorted(roles) == [0, 1]
    prompt, made = await booked(site)
    assert (prompt, made) == (8, 20)
    # As vLLM's, the engine's counter has a prompt with each of its choices, its usage once.
    assert await counted(site, engine) == (4 * 3 + 4 * 2, 20)


async def test_a_response_in_one_piece(client, site) -> None:
    answer = await client.responses.create(
        model=MODEL, input=[{"role": "user", "content": "how is it"}], instructions="be brief", max_output_tokens=16
    )
    assert answer.output_text
    assert (answer.status == "incomplete") == (answer.usage.output_tokens == 16)
    assert (answer.usage.input_tokens, answer.usage.total_tokens) == (5, 5 + answer.usage.output_tokens)
    (record,) = await site.usage(1)
    assert (record.prompt_tokens, record.completion_tokens) == (5, answer.usage.output_tokens)
    assert (record.outcome, record.token_source) == ("completed", "engine")


async def test_a_stream_of_a_response_is_what_the_sdk_expects(client, site) -> None:
    async with client.responses.stream(
        model=MODEL, input="how is the fleet", max_output_tokens=4, extra_body={"ignore_eos": True}
    ) as stream:
        events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    last = events[-1].response
    assert "".join(deltas) == last.output_text == "the fleet is well "
    assert (last.incomplete_details.reason, last.usage.output_tokens) == ("max_output_tokens", 4)
    (record,) = await site.usage(1)
    assert (record.prompt_tokens, record.completion_tokens, record.outcome) == (4, 4, "completed")


@pytest.mark.parametrize("usage", [None, {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_response_that_says_it_failed_is_booked_as_failed(site, is_stream, usage) -> None:
    told = {"id": "resp_1", "status": "failed", "error": {"code": "server_error", "message": "x"}, "usage": usage}
    sent = json.dumps(told).encode()
    if is_stream:
        event = {"type": "response.failed", "sequence_number": 1, "response": told}
        sent = b"event: response.failed\ndata: " + json.dumps(event).encode() + b"\n\n"

    async def script(_, writer) -> None:
        kind = b"text/event-stream" if is_stream else b"application/json"
        writer.write(HEAD % kind + b"%x\r\n%b\r\n0\r\n\r\n" % (len(sent), sent))

    await site.start()
    await site.worker((await site.scripted(script)).url)
    await site.routed(1)
    body = {"model": MODEL, "input": "x", "stream": is_stream}
    async with site.session.post(f"{site.url}/v1/responses", json=body, headers=site.headers) as answer:
        assert (answer.status, await answer.read()) == (200, sent)
    (record,) = await site.usage(1)
    assert (record.outcome, record.status) == ("failed", 200)
    if usage is None:
        assert (record.prompt_tokens, record.completion_tokens, record.token_source) == (None, None, "none")
    else:
        assert (record.prompt_tokens, record.completion_tokens, record.token_source) == (7, 3, "engine")


async def test_what_the_mock_engine_cannot_use_is_refused(site) -> None:
    engine = await site.engine()
    for path, fields in (
        ("completions", {"prompt": []}),
        ("completions", {"prompt": [1, "a"]}),
        ("completions", {"prompt": "a", "n": 0}),
        ("embeddings", {"input": None}),
        ("embeddings", {"input": "a", "encoding_format": "hex"}),
        ("embeddings", {"input": "a", "dimensions": -1}),
        ("responses", {"input": 7}),
        ("responses", {"input": "a", "max_output_tokens": "many"}),
    ):
        async with site.session.post(f"{engine}/v1/{path}", json={"model": MODEL} | fields) as answer:
            assert answer.status == 400, fields
            assert (await answer.json())["error"]["message"]
